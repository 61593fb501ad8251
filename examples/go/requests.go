package main

import (
	"google.golang.org/protobuf/proto"

	"example.com/sonde/inspection"
)

const subject = "The Eiffel Tower"

func text(value string) *inspection.Prompt {
	return &inspection.Prompt{Input: &inspection.Prompt_Text{Text: value}}
}

func run(edits ...*inspection.Edit) *inspection.Intervention {
	return &inspection.Intervention{Edits: edits}
}

func list(runs ...*inspection.Intervention) *inspection.InterveneRequest_List {
	return &inspection.InterveneRequest_List{List: &inspection.InterventionList{Interventions: runs}}
}

// causalTrace asks where the model stores what it knows about the subject. The answer has a grid for each of three
// components.
func causalTrace(samples int32, seed int64) *inspection.TraceRequest {
	return &inspection.TraceRequest{
		Prompt:  text(subject + " is in the city of"),
		Targets: []*inspection.Target{{Token: &inspection.Target_Text{Text: " Paris"}}},
		Method: &inspection.TraceRequest_CausalTracing{CausalTracing: &inspection.CausalTracing{
			Subject: &inspection.CausalTracing_SubjectText{SubjectText: subject},
			Window:  proto.Int32(3),
			Corruption: &inspection.CausalTracing_Gaussian_{Gaussian: &inspection.CausalTracing_Gaussian{
				Samples: proto.Int32(samples),
				Seed:    proto.Int64(seed),
			}},
		}},
	}
}

// landmarks are the subjects of the facts, each with the city that follows.
var landmarks = [][2]string{
	{"The Eiffel Tower", " Paris"}, {"The Louvre", " Paris"}, {"The Colosseum", " Rome"}, {"Big Ben", " London"},
}

// names are the positions where states are restored, alike in prompts of unequal length.
var names = []*inspection.NamedPositions{
	{Span: "subject", Part: inspection.SpanPart_SPAN_PART_LAST}, // the last token of the subject
	{Part: inspection.SpanPart_SPAN_PART_LAST},                  // the last token of the prompt
}

// facts asks for the mean over four facts of a causal trace, in parts of two facts each.
func facts() *inspection.TraceRequest {
	var cases []*inspection.Case
	for _, landmark := range landmarks {
		prompt := text(landmark[0] + " is in the city of")
		prompt.Spans = []*inspection.Span{{Name: "subject", Where: &inspection.Span_Text{Text: landmark[0]}}}
		cases = append(cases, &inspection.Case{
			Prompt:  prompt,
			Targets: []*inspection.Target{{Token: &inspection.Target_Text{Text: landmark[1]}}},
		})
	}
	return &inspection.TraceRequest{
		Cases:     cases,
		Reduction: &inspection.Reduction{Every: 2},
		Method: &inspection.TraceRequest_CausalTracing{CausalTracing: &inspection.CausalTracing{
			Subject: &inspection.CausalTracing_NamedSubject{
				NamedSubject: &inspection.NamedPositions{Span: "subject"},
			},
			NamedPositions: names,
			Components:     []inspection.Component{inspection.Component_COMPONENT_RESIDUAL_POST},
			Layers:         []int32{3, 6},
			Corruption: &inspection.CausalTracing_Gaussian_{Gaussian: &inspection.CausalTracing_Gaussian{
				Samples: proto.Int32(5),
			}},
		}},
	}
}

// ablations sets each head or neuron to zero, at each position or at all positions together.
func ablations(
	component inspection.Component, layers []int32, together ...inspection.Axis,
) *inspection.InterveneRequest {
	return &inspection.InterveneRequest{
		Prompt: text(subject + " is in the city of"),
		Plan: &inspection.InterveneRequest_Sweep{Sweep: &inspection.Sweep{
			Edit: &inspection.Edit{
				Site:      &inspection.Site{Component: component, Layers: layers},
				Operation: &inspection.Edit_Scale{Scale: 0},
			},
			Together: together,
		}},
		Readout: &inspection.Readout{
			Targets: []*inspection.Target{{
				Token:    &inspection.Target_Text{Text: " Paris"},
				Contrast: &inspection.Target_ContrastText{ContrastText: " Rome"},
			}},
			Position:     proto.Int32(-1),
			TopK:         3,
			KlDivergence: true,
		},
	}
}

// wrong names a layer and a neuron that the model does not have.
func wrong() *inspection.InterveneRequest {
	site := &inspection.Site{
		Component: inspection.Component_COMPONENT_NEURON, Layers: []int32{99}, Units: []int32{-1},
	}
	return &inspection.InterveneRequest{
		Prompt: text(subject + " is in the city of"),
		Plan:   list(run(&inspection.Edit{Site: site, Operation: &inspection.Edit_Scale{Scale: 0}})),
	}
}

// edits asks for three runs: one adds a direction, one sets a number, and one adds noise together with a knockout.
func edits(hiddenSize int32) *inspection.InterveneRequest {
	direction := make([]float32, hiddenSize)
	for index := range direction {
		direction[index] = float32(index%7-3) / 8
	}
	steered := &inspection.Edit{
		Site: &inspection.Site{
			Component:    inspection.Component_COMPONENT_RESIDUAL_POST,
			Layers:       []int32{0},
			FromPosition: proto.Int32(0),
		},
		Operation: &inspection.Edit_Add{Add: float32s(direction, hiddenSize)},
	}
	set := &inspection.Edit{
		Site: &inspection.Site{
			Component: inspection.Component_COMPONENT_HEAD_OUT,
			Layers:    []int32{4},
			Units:     []int32{0},
			Positions: []int32{-1},
		},
		Operation: &inspection.Edit_Set{Set: float32s([]float32{0.25})},
	}
	noise := &inspection.Edit{
		Site: &inspection.Site{Component: inspection.Component_COMPONENT_TOKEN_EMBEDDING, Positions: []int32{1}},
		Operation: &inspection.Edit_Noise{
			Noise: &inspection.Noise{StandardDeviation: 0.5, Seed: proto.Int64(0)},
		},
	}
	knockout := &inspection.Edit{
		Site: &inspection.Site{
			Component: inspection.Component_COMPONENT_ATTENTION_SCORES,
			Layers:    []int32{1, 2},
			Positions: []int32{-1},
		},
		Operation: &inspection.Edit_Knockout{Knockout: &inspection.Knockout{KeyPositions: []int32{0}}},
	}
	return &inspection.InterveneRequest{
		Prompt: &inspection.Prompt{Input: &inspection.Prompt_TokenIds{
			TokenIds: &inspection.TokenIds{Ids: []int32{10, 11, 12, 13, 14, 15}},
		}},
		Plan: list(run(steered), run(set), run(noise, knockout)),
		Readout: &inspection.Readout{
			Targets: []*inspection.Target{
				{Token: &inspection.Target_Id{Id: 0}},
				{Token: &inspection.Target_Id{Id: 20}, Contrast: &inspection.Target_ContrastId{ContrastId: 0}},
			},
			Activations: []*inspection.Site{{
				Component: inspection.Component_COMPONENT_NEURON, Layers: []int32{7}, Positions: []int32{-1},
			}},
		},
	}
}
