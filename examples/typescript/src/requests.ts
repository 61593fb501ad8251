// The requests of this example.
import { create } from "@bufbuild/protobuf";
import {
  type Axis,
  Component,
  type InterveneRequest,
  InterveneRequestSchema,
  SpanPart,
  type TraceRequest,
  TraceRequestSchema,
} from "../gen/contract.js";
import { float32 } from "./tensors.js";

export const SUBJECT = "The Eiffel Tower";
export const PROMPT = `${SUBJECT} is in the city of`;

/** Where does the model store what it knows about the subject? The answer has a grid for each of three components. */
export function causalTrace(samples: number, seed: bigint): TraceRequest {
  return create(TraceRequestSchema, {
    prompt: { input: { case: "text", value: PROMPT } },
    targets: [{ token: { case: "text", value: " Paris" } }],
    method: {
      case: "causalTracing",
      value: {
        subject: { case: "subjectText", value: SUBJECT },
        window: 3,
        corruption: { case: "gaussian", value: { samples, seed } },
      },
    },
  });
}

/** The subjects of the facts, each with the city that follows. */
const LANDMARKS = [
  ["The Eiffel Tower", " Paris"],
  ["The Louvre", " Paris"],
  ["The Colosseum", " Rome"],
  ["Big Ben", " London"],
] as const;

/** The mean over four facts of a causal trace, in parts of two facts each. */
export function facts(layers: number[]): TraceRequest {
  return create(TraceRequestSchema, {
    cases: LANDMARKS.map(([name, city]) => ({
      prompt: {
        input: { case: "text" as const, value: `${name} is in the city of` },
        spans: [{ name: "subject", where: { case: "text" as const, value: name } }],
      },
      targets: [{ token: { case: "text" as const, value: city } }],
    })),
    reduction: { every: 2 },
    method: {
      case: "causalTracing",
      value: {
        subject: { case: "namedSubject", value: { span: "subject" } },
        // The places where states are restored, alike in prompts of unequal length: the last token of the subject, and
        // of the prompt.
        namedPositions: [{ span: "subject", part: SpanPart.LAST }, { part: SpanPart.LAST }],
        components: [Component.RESIDUAL_POST],
        layers,
        corruption: { case: "gaussian", value: { samples: 5 } },
      },
    },
  });
}

/** Sets each head or neuron to zero, at each position or at all positions together. */
export function ablations(component: Component, layers: number[], together: Axis[]): InterveneRequest {
  return create(InterveneRequestSchema, {
    prompt: { input: { case: "text", value: PROMPT } },
    plan: {
      case: "sweep",
      value: { edit: { site: { component, layers }, operation: { case: "scale", value: 0 } }, together },
    },
    readout: {
      targets: [
        { token: { case: "text", value: " Paris" }, contrast: { case: "contrastText", value: " Rome" } },
      ],
      position: -1,
      topK: 3,
      klDivergence: true,
    },
  });
}

/** A layer and a neuron that the model does not have. */
export function wrong(): InterveneRequest {
  return create(InterveneRequestSchema, {
    prompt: { input: { case: "text", value: PROMPT } },
    plan: {
      case: "list",
      value: {
        interventions: [
          {
            edits: [
              {
                site: { component: Component.NEURON, layers: [99], units: [-1] },
                operation: { case: "scale", value: 0 },
              },
            ],
          },
        ],
      },
    },
  });
}

/** Three runs: one adds a direction, one sets a number, and one adds noise together with a knockout. */
export function edits(hiddenSize: number): InterveneRequest {
  const direction = Array.from({ length: hiddenSize }, (_, index) => ((index % 7) - 3) / 8);
  return create(InterveneRequestSchema, {
    prompt: { input: { case: "tokenIds", value: { ids: [10, 11, 12, 13, 14, 15] } } },
    plan: {
      case: "list",
      value: {
        interventions: [
          {
            edits: [
              {
                site: { component: Component.RESIDUAL_POST, layers: [0], fromPosition: 0 },
                operation: { case: "add", value: float32(direction, [hiddenSize]) },
              },
            ],
          },
          {
            edits: [
              {
                site: { component: Component.HEAD_OUT, layers: [4], units: [0], positions: [-1] },
                operation: { case: "set", value: float32([0.25], []) },
              },
            ],
          },
          {
            edits: [
              {
                site: { component: Component.TOKEN_EMBEDDING, positions: [1] },
                operation: { case: "noise", value: { standardDeviation: 0.5, seed: 0n } },
              },
              {
                site: { component: Component.ATTENTION_SCORES, layers: [1, 2], positions: [-1] },
                operation: { case: "knockout", value: { keyPositions: [0] } },
              },
            ],
          },
        ],
      },
    },
    readout: {
      targets: [
        { token: { case: "id", value: 0 } },
        { token: { case: "id", value: 20 }, contrast: { case: "contrastId", value: 0 } },
      ],
      activations: [{ component: Component.NEURON, layers: [7], positions: [-1] }],
    },
  });
}
