package main

import (
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"sort"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"

	"example.com/sonde/inspection"
)

// golden prints requests and answers, one per line, for the tests that compare the bytes and numbers of all languages:
// CASE.request BASE64, CASE.NAME NUMBERS.
func golden(client inspection.InspectionServiceClient) error {
	ctx := context.Background()
	model, err := client.GetModel(ctx, &inspection.GetModelRequest{})
	if err != nil {
		return err
	}
	decoder := model.Stacks[0]
	fmt.Println("model.request")
	fmt.Println("model.sizes", decoder.Layers, decoder.HiddenSize, decoder.Heads, decoder.KeyValueHeads,
		decoder.HeadSize, decoder.Neurons, model.VocabularySize)
	fmt.Println("model.parameters", model.Parameters)
	fmt.Println("model.max_answer_bytes", model.Limits.MaxAnswerBytes)
	if err := goldenTrace(ctx, client, causalTrace(4, 4294967295)); err != nil {
		return err
	}
	sweep := ablations(inspection.Component_COMPONENT_HEAD_OUT, nil, inspection.Axis_AXIS_POSITION)
	if err := goldenIntervene(ctx, client, "sweep", sweep); err != nil {
		return err
	}
	if err := goldenIntervene(ctx, client, "edits", edits(decoder.HiddenSize)); err != nil {
		return err
	}
	return goldenRefusal(ctx, client)
}

func goldenTrace(
	ctx context.Context, client inspection.InspectionServiceClient, request *inspection.TraceRequest,
) error {
	printRequest("causal_trace", request)
	stream, err := client.Trace(ctx, request)
	if err != nil {
		return err
	}
	var answer traced
	for {
		message, err := stream.Recv()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		answer.put(message)
	}
	printContext("causal_trace", answer.context)
	printFloats("causal_trace.corrupted", answer.corruption.Probabilities)
	printFloats("causal_trace.noise_deviation", []float32{answer.corruption.NoiseDeviation})
	for component := range answer.grids {
		var values []float32
		for _, one := range answer.grid(component) {
			values = append(values, one.probability)
		}
		printFloats("causal_trace."+strings.ToLower(component.String()[len("COMPONENT_"):]), values)
	}
	return nil
}

func goldenIntervene(
	ctx context.Context, client inspection.InspectionServiceClient, name string, request *inspection.InterveneRequest,
) error {
	printRequest(name, request)
	stream, err := client.Intervene(ctx, request)
	if err != nil {
		return err
	}
	var answer changed
	for {
		message, err := stream.Recv()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		answer.put(message)
	}
	printContext(name, answer.context)
	for field, column := range answer.columns {
		printFloats(name+"."+field, column.values)
	}
	var runs []int
	for run := range answer.activations {
		runs = append(runs, int(run))
	}
	sort.Ints(runs)
	var activations []float32
	for _, run := range runs {
		activations = append(activations, answer.activations[int32(run)]...)
	}
	if activations != nil {
		printFloats(name+".activations", activations)
	}
	return nil
}

func goldenRefusal(ctx context.Context, client inspection.InspectionServiceClient) error {
	printRequest("refused", wrong())
	stream, err := client.Intervene(ctx, wrong())
	if err != nil {
		return err
	}
	_, err = stream.Recv()
	refused, reasons, violations := details(err)
	fmt.Println("refused.code", uint32(refused.Code()))
	fmt.Println("refused.reasons", strings.Join(reasons, " "))
	for _, violation := range violations {
		fmt.Println("refused.violation", violation.Field, violation.Description)
	}
	return nil
}

func printRequest(name string, request proto.Message) {
	data, err := proto.Marshal(request)
	if err != nil {
		panic(err) // a request that is built here can always be encoded
	}
	fmt.Println(name+".request", base64.StdEncoding.EncodeToString(data))
}

func printContext(name string, context *inspection.RunContext) {
	printInts(name+".tokens", ids(context.Tokens))
	printInts(name+".targets", ids(context.Targets))
	printInts(name+".position", []int32{context.Position})
	printFloats(name+".clean", context.Clean.LogProbabilities)
	printFloats(name+".clean_logits", context.Clean.Logits)
	fmt.Println(name+".runs", context.Cost.Runs)
	if context.Axes != nil {
		printInts(name+".layers", context.Axes.Layers)
		printInts(name+".units", context.Axes.Units)
	}
}

func ids(tokens []*inspection.Token) []int32 {
	var all []int32
	for _, token := range tokens {
		all = append(all, token.Id)
	}
	return all
}

func printInts(name string, values []int32) {
	fmt.Println(name, strings.Trim(fmt.Sprint(values), "[]"))
}

func printFloats(name string, values []float32) {
	fields := []string{name}
	for _, value := range values {
		fields = append(fields, strconv.FormatFloat(float64(value), 'g', -1, 32))
	}
	fmt.Println(strings.Join(fields, " "))
}
