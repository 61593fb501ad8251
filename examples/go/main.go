// Asks a Sonde server each kind of question once: build/sonde-example localhost:50051
package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"math"
	"os"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"example.com/sonde/inspection"
)

func main() {
	log.SetFlags(0)
	address, tell := "localhost:50051", tour
	if len(os.Args) > 1 {
		address = os.Args[1]
	}
	if len(os.Args) > 2 && os.Args[2] == "golden" {
		tell = golden
	}
	connection, err := grpc.Dial(address, grpc.WithInsecure())
	if err != nil {
		log.Fatal(err)
	}
	defer connection.Close()
	if err := tell(inspection.NewInspectionServiceClient(connection)); err != nil {
		log.Fatal(err)
	}
}

func tour(client inspection.InspectionServiceClient) error {
	ctx, stop := context.WithTimeout(context.Background(), 2*time.Minute)
	defer stop()
	for _, part := range []func(context.Context, inspection.InspectionServiceClient) error{
		showModel, showTrace, showFacts, showSweep, showRefusal, showCancel,
	} {
		if err := part(ctx, client); err != nil {
			return err
		}
	}
	return nil
}

func showModel(ctx context.Context, client inspection.InspectionServiceClient) error {
	model, err := client.GetModel(ctx, &inspection.GetModelRequest{})
	if err != nil {
		return err
	}
	decoder := model.Stacks[0]
	fmt.Printf("%s: %d layers of %d heads and %d neurons, %d parameters\n",
		model.Provenance.Model, decoder.Layers, decoder.Heads, decoder.Neurons, model.Parameters)
	return nil
}

// showTrace runs a causal trace and shows its progress.
func showTrace(ctx context.Context, client inspection.InspectionServiceClient) error {
	stream, err := client.Trace(ctx, causalTrace(20, 1))
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
		if progress := message.Progress; progress != nil {
			fmt.Printf("trace: %d of %d\n", progress.Done, progress.Total)
		}
	}
	fmt.Printf("\"%s\": %.3f clean, %.3f corrupted\n", answer.context.Targets[0].Text,
		math.Exp(float64(answer.context.Clean.LogProbabilities[0])), answer.corruption.Probabilities[0])
	for component := range answer.grids {
		best := cell{}
		for _, one := range answer.grid(component) {
			if one.probability > best.probability {
				best = one
			}
		}
		fmt.Printf("  %.3f with %s restored at layer %d, \"%s\"\n", best.probability,
			component.String()[len("COMPONENT_"):], best.layer, answer.context.Tokens[best.position].Text)
	}
	return nil
}

// showFacts averages a causal trace over several facts. The server answers means and deviations for parts of the cases.
func showFacts(ctx context.Context, client inspection.InspectionServiceClient) error {
	stream, err := client.Trace(ctx, facts())
	if err != nil {
		return err
	}
	answer := newReduced()
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
	answer.join()
	fmt.Printf("facts: %d cases in %d parts\n", answer.cases, answer.parts)
	for row, name := range []string{"subject", "prompt"} {
		for _, layer := range []int32{3, 6} {
			cell := answer.whole[place{int32(row), layer}]
			fmt.Printf("  %.3f +- %.3f over %.0f with layer %d restored at the last token of the %s\n",
				cell.mean, cell.deviation, cell.count, layer, name)
		}
	}
	return nil
}

// showSweep ablates every neuron of a layer at every position, and shows partial results after each message.
func showSweep(ctx context.Context, client inspection.InspectionServiceClient) error {
	stream, err := client.Intervene(ctx, ablations(inspection.Component_COMPONENT_NEURON, []int32{3}))
	if err != nil {
		return err
	}
	var answer changed
	for {
		message, err := stream.Recv()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		answer.put(message)
		if message.Readings == nil {
			continue
		}
		least, column := -1, answer.columns["log_probabilities"]
		for run, come := range column.come {
			if come && (least < 0 || column.values[run] < column.values[least]) {
				least = run
			}
		}
		// The last axis varies fastest.
		axes := answer.context.Axes
		units, positions := len(axes.Units), len(axes.Positions)
		fmt.Printf("sweep: %d of %d runs; the least so far is %.3f without neuron %d of layer %d at \"%s\"\n",
			answer.arrived, answer.context.Cost.Runs, math.Exp(float64(column.values[least])),
			axes.Units[least/positions%units], axes.Layers[least/positions/units],
			answer.context.Tokens[axes.Positions[least%positions]].Text)
	}
}

// showRefusal sends a request that the server refuses. The details of the error say what is wrong.
func showRefusal(ctx context.Context, client inspection.InspectionServiceClient) error {
	stream, err := client.Intervene(ctx, wrong())
	if err != nil {
		return err
	}
	_, err = stream.Recv()
	refused, reasons, violations := details(err)
	if len(reasons) == 0 {
		return err
	}
	fmt.Printf("refused: %s (%s)\n", refused.Code(), reasons[0])
	for _, violation := range violations {
		fmt.Printf("  %s: %s\n", violation.Field, violation.Description)
	}
	return nil
}

// details reads the status, the reason and the violations of a gRPC error.
func details(err error) (*status.Status, []string, []*errdetails.BadRequest_FieldViolation) {
	var reasons []string
	var violations []*errdetails.BadRequest_FieldViolation
	refused := status.Convert(err)
	for _, detail := range refused.Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			reasons = append(reasons, detail.Reason)
		case *errdetails.BadRequest:
			violations = append(violations, detail.FieldViolations...)
		}
	}
	return refused, reasons, violations
}

// showCancel cancels a long sweep after its first runs. The server stops computing.
func showCancel(ctx context.Context, client inspection.InspectionServiceClient) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := client.Intervene(ctx, ablations(inspection.Component_COMPONENT_NEURON, nil))
	if err != nil {
		return err
	}
	var progress *inspection.Progress
	for progress.GetDone() == 0 {
		message, err := stream.Recv()
		if err != nil {
			return err
		}
		progress = message.Progress
	}
	cancel()
	for err == nil {
		_, err = stream.Recv()
	}
	if status.Code(err) != codes.Canceled {
		return err
	}
	fmt.Printf("cancelled: %s after %d of %d runs\n", status.Code(err), progress.Done, progress.Total)
	return nil
}
