package main

import (
	"math"
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

// moments are what is known of the values of one number.
type moments struct{ count, mean, deviation float64 }

// join returns the moments of the values of both.
func (m moments) join(other moments) moments {
	count := m.count + other.count
	if count == 0 {
		return m
	}
	mean := (m.count*m.mean + other.count*other.mean) / count
	squares := m.count*(m.deviation*m.deviation+m.mean*m.mean) +
		other.count*(other.deviation*other.deviation+other.mean*other.mean)
	return moments{count, mean, math.Sqrt(math.Max(0, squares/count-mean*mean))}
}

// place is a row and a layer of a reduced grid.
type place struct{ row, layer int32 }

// reduced is the answer of a causal trace over cases, reduced in parts. It takes one component and one target.
type reduced struct {
	cases, parts int32
	whole        map[place]moments            // the parts that are complete, joined
	part         map[int32]map[place]*moments // by first case: a part, which comes as means and as deviations
}

func newReduced() *reduced {
	return &reduced{whole: map[place]moments{}, part: map[int32]map[place]*moments{}}
}

func (r *reduced) put(message *inspection.TraceResponse) {
	about := message.Reduction
	if about == nil {
		return // progress alone
	}
	cells := r.part[about.FirstCase]
	if cells == nil {
		cells = map[place]*moments{}
		r.part[about.FirstCase] = cells
		r.cases += about.Cases
		r.parts++
	}
	for _, slice := range message.Grids {
		values := numbers(slice.Probabilities)
		for row, position := range slice.Positions {
			for column, layer := range slice.Layers {
				at := place{position, layer}
				if cells[at] == nil {
					cells[at] = &moments{}
				}
				cells[at].count = float64(slice.Counts[row])
				value := float64(values[row*len(slice.Layers)+column])
				if about.Statistic == inspection.Statistic_STATISTIC_MEAN {
					cells[at].mean = value
				} else {
					cells[at].deviation = value
				}
			}
		}
	}
}

// join adds the parts that have come to the whole. To go on after a break, ask for the cases from `cases` on.
func (r *reduced) join() {
	for first, cells := range r.part {
		for at, cell := range cells {
			r.whole[at] = r.whole[at].join(*cell)
		}
		delete(r.part, first)
	}
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
