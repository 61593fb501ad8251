package main

import (
	"sort"

	"example.com/sonde/inspection"
)

// Assembles answers. They arrive in slices that say where they belong.

// cell is one place in a grid, with the probability of the first target.
type cell struct {
	position, layer int32
	probability     float32
}

// traced is the answer of a causal trace.
type traced struct {
	context    *inspection.RunContext
	corruption *inspection.Corruption
	grids      map[inspection.Component][]cell
}

func (t *traced) put(message *inspection.TraceResponse) {
	if message.Context != nil {
		t.context, t.grids = message.Context, map[inspection.Component][]cell{}
	}
	if message.Corruption != nil {
		t.corruption = message.Corruption
	}
	for _, slice := range message.Grids {
		values, targets := numbers(slice.Probabilities), len(t.context.Targets)
		for row, position := range slice.Positions {
			for column, layer := range slice.Layers {
				probability := values[(row*len(slice.Layers)+column)*targets]
				t.grids[slice.Component] = append(t.grids[slice.Component], cell{position, layer, probability})
			}
		}
	}
}

// grid returns every cell of a component, by position and then by layer.
func (t *traced) grid(component inspection.Component) []cell {
	cells := t.grids[component]
	sort.Slice(cells, func(i, j int) bool {
		if cells[i].position != cells[j].position {
			return cells[i].position < cells[j].position
		}
		return cells[i].layer < cells[j].layer
	})
	return cells
}

// column has one or more numbers for each run that has arrived so far.
type column struct {
	values []float32
	come   []bool
}

func (c *column) put(tensor *inspection.Tensor, first, rows, allRows int) {
	values := numbers(tensor)
	width := len(values) / rows
	if c.values == nil {
		c.values, c.come = make([]float32, allRows*width), make([]bool, allRows)
	}
	copy(c.values[first*width:], values)
	for row := first; row < first+rows; row++ {
		c.come[row] = true
	}
}

// changed holds the predictions of the runs of an Intervene call.
type changed struct {
	context     *inspection.RunContext
	arrived     int
	columns     map[string]*column
	activations map[int32][]float32 // by run, where -1 is the unchanged run; for the one requested site and layer
}

func (c *changed) put(message *inspection.InterveneResponse) {
	if message.Context != nil {
		c.context, c.columns, c.activations = message.Context, map[string]*column{}, map[int32][]float32{}
	}
	if readings := message.Readings; readings.GetCount() > 0 {
		for name, tensor := range map[string]*inspection.Tensor{
			"log_probabilities":     readings.LogProbabilities,
			"logits":                readings.Logits,
			"kl_divergences":        readings.KlDivergences,
			"top_token_ids":         readings.TopTokenIds,
			"top_log_probabilities": readings.TopLogProbabilities,
			"edit_norms":            readings.EditNorms,
		} {
			if tensor == nil {
				continue
			}
			if c.columns[name] == nil {
				c.columns[name] = &column{}
			}
			c.columns[name].put(tensor, int(readings.Offset), int(readings.Count), int(c.context.Cost.Runs))
		}
		c.arrived += int(readings.Count)
	}
	for _, slice := range message.Activations {
		if c.activations[slice.Run] == nil {
			size := 1
			for _, length := range slice.Shape {
				size *= int(length)
			}
			c.activations[slice.Run] = make([]float32, size)
		}
		copy(c.activations[slice.Run][slice.Offset:], numbers(slice.Values))
	}
}
