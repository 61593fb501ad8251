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

// What is known of the values of one number.
struct Moments {
  double count = 0, mean = 0, deviation = 0;
};

// The answer of a causal trace over cases, reduced in parts. It takes one component and one target.
struct Reduced {
  int cases = 0;
  // By first case: a part, which comes as means and then as deviations; by (row, layer).
  std::map<int, std::map<std::pair<int, int>, Moments>> parts;

  void Put(const sonde::v1::TraceResponse& message);
  // The parts, joined. To go on after a break, ask for the cases from `cases` on.
  Moments At(int row, int layer) const;
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
