// Answers come in slices that say where they belong. Here they are put together.
#pragma once

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "sonde/v1/inspection.pb.h"

// A causal trace.
struct Traced {
  sonde::v1::RunContext context;
  sonde::v1::Corruption corruption;
  // By component: the probability of the first target by (position, layer).
  std::map<sonde::v1::Component, std::map<std::pair<int, int>, double>> grids;

  void Put(const sonde::v1::TraceResponse& message);
};

// What the runs of an Intervene made of the prediction, as far as they have come.
struct Changed {
  sonde::v1::RunContext context;
  int arrived = 0;
  // By field of Readings: row by row, NaN where a run has not come yet.
  std::map<std::string, std::vector<double>> columns;
  // By run, -1 the unchanged one; of the one site and layer that is asked for.
  std::map<int, std::vector<double>> activations;

  void Put(const sonde::v1::InterveneResponse& message);

 private:
  void PutRows(const std::string& name, const sonde::v1::Tensor& tensor, const sonde::v1::Readings& readings);
};
