// What this example asks.
#pragma once

#include <cstdint>
#include <vector>

#include "sonde/v1/inspection.pb.h"

// Where the model keeps what it knows of the subject. Each of three components gives a grid.
sonde::v1::TraceRequest CausalTrace(int samples, std::int64_t seed);

// What each head, or each neuron, is worth: it is set to zero, at each position or at all of them together.
sonde::v1::InterveneRequest Ablations(sonde::v1::Component component, const std::vector<int>& layers,
                                      const std::vector<sonde::v1::Axis>& together);

// A layer and a neuron that the model does not have.
sonde::v1::InterveneRequest Wrong();

// Three runs of their own: a direction added, one number set, and noise together with a knockout.
sonde::v1::InterveneRequest Edits(int hidden_size);
