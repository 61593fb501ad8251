#include "answers.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>

#include "tensors.h"

void Traced::Put(const sonde::v1::TraceResponse& message) {
  if (message.has_context()) context = message.context();
  if (message.has_corruption()) corruption = message.corruption();
  for (const auto& slice : message.grids()) {
    const auto values = Numbers(slice.probabilities());
    std::size_t at = 0;
    for (int position : slice.positions()) {
      for (int layer : slice.layers()) {
        grids[slice.component()][{position, layer}] = values.at(at);
        at += context.targets_size();
      }
    }
  }
}

void Reduced::Put(const sonde::v1::TraceResponse& message) {
  if (!message.has_reduction()) return;  // progress alone
  const auto& about = message.reduction();
  if (parts.count(about.first_case()) == 0) cases += about.cases();
  auto& part = parts[about.first_case()];
  for (const auto& slice : message.grids()) {
    const auto values = Numbers(slice.probabilities());
    std::size_t at = 0;
    for (int index = 0; index < slice.positions_size(); ++index) {
      for (int layer : slice.layers()) {
        auto& cell = part[{slice.positions(index), layer}];
        cell.count = slice.counts(index);
        (about.statistic() == sonde::v1::STATISTIC_MEAN ? cell.mean : cell.deviation) = values.at(at++);
      }
    }
  }
}

Moments Reduced::At(int row, int layer) const {
  double count = 0, sum = 0, squares = 0;
  for (const auto& [first, part] : parts) {
    const auto& cell = part.at({row, layer});
    count += cell.count;
    sum += cell.count * cell.mean;
    squares += cell.count * (cell.deviation * cell.deviation + cell.mean * cell.mean);
  }
  if (count == 0) return {};
  const double mean = sum / count;
  return {count, mean, std::sqrt(std::max(0.0, squares / count - mean * mean))};
}

void Changed::Put(const sonde::v1::InterveneResponse& message) {
  if (message.has_context()) context = message.context();
  if (message.has_readings()) {
    const auto& readings = message.readings();
    PutRows("log_probabilities", readings.log_probabilities(), readings);
    PutRows("logits", readings.logits(), readings);
    PutRows("kl_divergences", readings.kl_divergences(), readings);
    PutRows("top_token_ids", readings.top_token_ids(), readings);
    PutRows("top_log_probabilities", readings.top_log_probabilities(), readings);
    PutRows("edit_norms", readings.edit_norms(), readings);
    arrived += readings.count();
  }
  for (const auto& slice : message.activations()) {
    const auto values = Numbers(slice.values());
    auto& whole = activations[slice.run()];
    whole.resize(std::max(whole.size(), slice.offset() + values.size()));
    std::copy(values.begin(), values.end(), whole.begin() + slice.offset());
  }
}

void Changed::PutRows(const std::string& name, const sonde::v1::Tensor& tensor,
                      const sonde::v1::Readings& readings) {
  const auto values = Numbers(tensor);
  if (values.empty()) return;
  const std::size_t width = values.size() / readings.count();
  auto& column = columns[name];
  column.resize(context.cost().runs() * width, std::numeric_limits<double>::quiet_NaN());
  std::copy(values.begin(), values.end(), column.begin() + readings.offset() * width);
}
