// Every message, enumeration and service of the contract. protoc-gen-es does not re-export what a file imports publicly.
export * from "../gen/sonde/v1/activations_pb.js";
export * from "../gen/sonde/v1/attribution_patching_pb.js";
export * from "../gen/sonde/v1/causal_tracing_pb.js";
export * from "../gen/sonde/v1/context_pb.js";
export * from "../gen/sonde/v1/edits_pb.js";
export * from "../gen/sonde/v1/inspection_pb.js";
export * from "../gen/sonde/v1/interventions_pb.js";
export * from "../gen/sonde/v1/model_pb.js";
export * from "../gen/sonde/v1/places_pb.js";
export * from "../gen/sonde/v1/plans_pb.js";
export * from "../gen/sonde/v1/prompts_pb.js";
export * from "../gen/sonde/v1/readouts_pb.js";
export * from "../gen/sonde/v1/targets_pb.js";
export * from "../gen/sonde/v1/tensors_pb.js";
export * from "../gen/sonde/v1/token_probability_pb.js";
export * from "../gen/sonde/v1/traces_pb.js";
