// Assembles answers. They arrive in slices that say where they belong.
#pragma once

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "sonde/v1/inspection.pb.h"

// The answer of a causal trace.
struct Traced {
  sonde::v1::RunContext context;
  sonde::v1::Corruption corruption;
  // By component: the probability of the first target, by (position, layer).
  std::map<sonde::v1::Component, std::map<std::pair<int, int>, double>> grids;

  void Put(const sonde::v1::TraceResponse& message);
};

// The predictions of the runs of an Intervene call that have arrived so far.
struct Changed {
  sonde::v1::RunContext context;
  int arrived = 0;
  // By field of Readings: row by row, NaN for runs that have not arrived yet.
  std::map<std::string, std::vector<double>> columns;
  // By run, where -1 is the unchanged run; for the one requested site and layer.
  std::map<int, std::vector<double>> activations;

  void Put(const sonde::v1::InterveneResponse& message);

 private:
  void PutRows(const std::string& name, const sonde::v1::Tensor& tensor, const sonde::v1::Readings& readings);
};
