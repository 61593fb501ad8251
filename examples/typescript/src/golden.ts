// Prints requests and answers, one per line, for the tests that compare the bytes and numbers of all languages:
// CASE.request BASE64, CASE.NAME NUMBERS.
import { type DescMessage, type MessageShape, toBinary } from "@bufbuild/protobuf";
import { ConnectError, createClient } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";
import { BadRequestSchema, ErrorInfoSchema } from "../gen/google/rpc/error_details_pb.js";
import {
  Axis,
  Component,
  InspectionService,
  type InterveneRequest,
  InterveneRequestSchema,
  type RunContext,
  TraceRequestSchema,
} from "./contract.js";
import { Changed, Traced } from "./answers.js";
import { ablations, causalTrace, edits, wrong } from "./requests.js";

const address = process.argv[2] ?? "localhost:50051";
const client = createClient(InspectionService, createGrpcTransport({ baseUrl: `http://${address}` }));

function print(name: string, values: (number | bigint | string)[]): void {
  console.log([name, ...values].join(" "));
}

function printRequest<S extends DescMessage>(name: string, schema: S, request: MessageShape<S>): void {
  print(`${name}.request`, [Buffer.from(toBinary(schema, request)).toString("base64")]);
}

function printContext(name: string, context: RunContext): void {
  print(`${name}.tokens`, context.tokens.map((token) => token.id));
  print(`${name}.targets`, context.targets.map((token) => token.id));
  print(`${name}.position`, [context.position]);
  print(`${name}.clean`, context.clean!.logProbabilities);
  print(`${name}.clean_logits`, context.clean!.logits);
  print(`${name}.runs`, [context.cost!.runs]);
  if (context.axes !== undefined) {
    print(`${name}.layers`, context.axes.layers);
    print(`${name}.units`, context.axes.units);
  }
}

async function model(): Promise<number> {
  const answer = await client.getModel({});
  const { layers, hiddenSize, heads, keyValueHeads, headSize, neurons } = answer.stacks[0]!;
  print("model.request", []);
  print("model.sizes", [layers, hiddenSize, heads, keyValueHeads, headSize, neurons, answer.vocabularySize]);
  print("model.parameters", [answer.parameters]);
  print("model.max_answer_bytes", [answer.limits!.maxAnswerBytes]);
  return hiddenSize;
}

async function trace(): Promise<void> {
  const request = causalTrace(4, 4294967295n);
  printRequest("causal_trace", TraceRequestSchema, request);
  const traced = new Traced();
  for await (const message of client.trace(request)) traced.put(message);
  printContext("causal_trace", traced.context!);
  print("causal_trace.corrupted", traced.corrupted);
  print("causal_trace.noise_deviation", [traced.noiseDeviation]);
  for (const [component, grid] of traced.grids) {
    const name = Component[component]!.toLowerCase();
    print(`causal_trace.${name}`, [...grid.cells()].map((cell) => cell.probability));
  }
}

async function intervene(name: string, request: InterveneRequest): Promise<void> {
  printRequest(name, InterveneRequestSchema, request);
  const changed = new Changed();
  for await (const message of client.intervene(request)) changed.put(message);
  printContext(name, changed.context!);
  for (const [column, values] of changed.columns) {
    print(`${name}.${column.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`)}`, values);
  }
  if (changed.activations.size > 0) {
    const runs = [...changed.activations.values()].sort((one, other) => one.run - other.run);
    print(`${name}.activations`, runs.flatMap((run) => run.values));
  }
}

async function refused(): Promise<void> {
  printRequest("refused", InterveneRequestSchema, wrong());
  try {
    for await (const _ of client.intervene(wrong()));
  } catch (cause) {
    const error = ConnectError.from(cause);
    print("refused.code", [error.code]);
    print("refused.reasons", error.findDetails(ErrorInfoSchema).map((detail) => detail.reason));
    for (const violation of error.findDetails(BadRequestSchema).flatMap((detail) => detail.fieldViolations)) {
      print("refused.violation", [violation.field, violation.description]);
    }
  }
}

const hiddenSize = await model();
await trace();
await intervene("sweep", ablations(Component.HEAD_OUT, [], [Axis.POSITION]));
await intervene("edits", edits(hiddenSize));
await refused();
