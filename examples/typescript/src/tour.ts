// Asks a Sonde server each kind of question once: npm run tour -- localhost:50051
import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";
import { BadRequestSchema, ErrorInfoSchema } from "../gen/google/rpc/error_details_pb.js";
import { Component, InspectionService } from "../gen/contract.js";
import { Changed, Reduced, Traced } from "./answers.js";
import { ablations, causalTrace, facts, wrong } from "./requests.js";

const address = process.argv[2] ?? "localhost:50051";
const client = createClient(InspectionService, createGrpcTransport({ baseUrl: `http://${address}` }));

async function showModel(): Promise<void> {
  const model = await client.getModel({}, { timeoutMs: 10_000 });
  const decoder = model.stacks[0]!;
  console.log(
    `${model.provenance?.model}: ${decoder.layers} layers of ${decoder.heads} heads and ${decoder.neurons} neurons, ` +
      `${model.parameters} parameters`,
  );
}

/** Runs a causal trace and shows its progress. */
async function trace(): Promise<void> {
  const traced = new Traced();
  for await (const message of client.trace(causalTrace(20, 1n), { timeoutMs: 120_000 })) {
    traced.put(message);
    if (message.progress) console.log(`trace: ${message.progress.done} of ${message.progress.total}`);
  }
  const { tokens = [], targets = [], clean } = traced.context!;
  const probability = Math.exp(clean!.logProbabilities[0]!);
  console.log(
    `"${targets[0]?.text}": ${probability.toFixed(3)} clean, ${traced.corrupted[0]?.toFixed(3)} corrupted`,
  );
  for (const [component, grid] of traced.grids) {
    const best = [...grid.cells()].reduce((one, other) => (other.probability > one.probability ? other : one));
    console.log(
      `  ${best.probability.toFixed(3)} with ${Component[component]} restored at layer ${best.layer}, ` +
        `"${tokens[best.position]?.text}"`,
    );
  }
}

/** Averages a causal trace over several facts. The server answers means and deviations for parts of the cases. */
async function average(): Promise<void> {
  const layers = [3, 6];
  const reduced = new Reduced();
  for await (const message of client.trace(facts(layers), { timeoutMs: 120_000 })) reduced.put(message);
  console.log(`facts: ${reduced.cases} cases in ${reduced.parts.size} parts`);
  ["subject", "prompt"].forEach((name, row) => {
    for (const layer of layers) {
      const { count, mean, deviation } = reduced.at(row, layer);
      console.log(
        `  ${mean.toFixed(3)} +- ${deviation.toFixed(3)} over ${count} with layer ${layer} restored ` +
          `at the last token of the ${name}`,
      );
    }
  });
}

/** Ablates every neuron of a layer at every position, and shows partial results after each message. */
async function sweep(): Promise<void> {
  const changed = new Changed();
  for await (const message of client.intervene(ablations(Component.NEURON, [3], []), { timeoutMs: 120_000 })) {
    changed.put(message);
    const { axes, cost, tokens } = changed.context!;
    const column = changed.columns.get("logProbabilities");
    if (column === undefined || axes === undefined) continue;
    let run = column.findIndex((value) => value !== undefined);
    column.forEach((value, index) => (run = value < column[run]! ? index : run));
    // The last axis varies fastest.
    const position = axes.positions[run % axes.positions.length]!;
    const unit = axes.units[Math.floor(run / axes.positions.length) % axes.units.length];
    const layer = axes.layers[Math.floor(run / axes.positions.length / axes.units.length)];
    console.log(
      `sweep: ${changed.arrived} of ${cost?.runs} runs; the least so far is ${Math.exp(column[run]!).toFixed(3)} ` +
        `without neuron ${unit} of layer ${layer} at "${tokens[position]?.text}"`,
    );
  }
}

/** Sends a request that the server refuses. The details of the error say what is wrong. */
async function refused(): Promise<void> {
  try {
    for await (const _ of client.intervene(wrong(), { timeoutMs: 10_000 }));
  } catch (cause) {
    const error = ConnectError.from(cause);
    const reason = error.findDetails(ErrorInfoSchema)[0]?.reason;
    console.log(`refused: ${Code[error.code]} (${reason})`);
    for (const violation of error.findDetails(BadRequestSchema).flatMap((detail) => detail.fieldViolations)) {
      console.log(`  ${violation.field}: ${violation.description}`);
    }
  }
}

/** Cancels a long sweep after its first runs. The server stops computing. */
async function cancelled(): Promise<void> {
  const stop = new AbortController();
  let reached = "";
  try {
    for await (const message of client.intervene(ablations(Component.NEURON, [], []), { signal: stop.signal })) {
      if (message.progress?.done) {
        reached = `${message.progress.done} of ${message.progress.total}`;
        stop.abort();
      }
    }
  } catch (cause) {
    console.log(`cancelled: ${Code[ConnectError.from(cause).code]} after ${reached} runs`);
  }
}

await showModel();
await trace();
await average();
await sweep();
await refused();
await cancelled();
