// Asks a Sonde server each kind of question once: build/sonde-example localhost:50051
#include <grpcpp/grpcpp.h>

#include <chrono>
#include <cmath>
#include <cstdio>
#include <iostream>
#include <string>
#include <vector>

#include "answers.h"
#include "golden.h"
#include "refusals.h"
#include "requests.h"
#include "sonde/v1/inspection.grpc.pb.h"

namespace {

using Stub = sonde::v1::InspectionService::Stub;

void SetDeadline(grpc::ClientContext& call) {
  call.set_deadline(std::chrono::system_clock::now() + std::chrono::minutes(2));
}

grpc::Status ShowModel(Stub& stub) {
  grpc::ClientContext call;
  SetDeadline(call);
  sonde::v1::GetModelResponse model;
  const auto status = stub.GetModel(&call, {}, &model);
  if (!status.ok()) return status;
  const auto& decoder = model.stacks(0);
  std::cout << model.provenance().model() << ": " << decoder.layers() << " layers of " << decoder.heads()
            << " heads and " << decoder.neurons() << " neurons, " << model.parameters() << " parameters" << std::endl;
  return status;
}

// Runs a causal trace and shows its progress.
grpc::Status ShowTrace(Stub& stub) {
  grpc::ClientContext call;
  SetDeadline(call);
  const auto stream = stub.Trace(&call, CausalTrace(20, 1));
  Traced traced;
  for (sonde::v1::TraceResponse message; stream->Read(&message);) {
    traced.Put(message);
    if (!message.has_progress()) continue;
    std::cout << "trace: " << message.progress().done() << " of " << message.progress().total() << std::endl;
  }
  const auto status = stream->Finish();
  if (!status.ok()) return status;
  const auto& context = traced.context;
  std::printf("\"%s\": %.3f clean, %.3f corrupted\n", context.targets(0).text().c_str(),
              std::exp(context.clean().log_probabilities(0)), traced.corruption.probabilities(0));
  for (const auto& [component, grid] : traced.grids) {
    auto best = grid.begin();
    for (auto cell = grid.begin(); cell != grid.end(); ++cell) {
      if (cell->second > best->second) best = cell;
    }
    const auto name = sonde::v1::Component_Name(component).substr(std::string("COMPONENT_").size());
    std::printf("  %.3f with %s restored at layer %d, \"%s\"\n", best->second, name.c_str(), best->first.second,
                context.tokens(best->first.first).text().c_str());
  }
  std::fflush(stdout);
  return status;
}

// Averages a causal trace over several facts. The server answers means and deviations for parts of the cases.
grpc::Status ShowFacts(Stub& stub) {
  grpc::ClientContext call;
  SetDeadline(call);
  const std::vector<int> layers = {3, 6};
  const auto stream = stub.Trace(&call, Facts(layers));
  Reduced reduced;
  for (sonde::v1::TraceResponse message; stream->Read(&message);) reduced.Put(message);
  const auto status = stream->Finish();
  if (!status.ok()) return status;
  std::printf("facts: %d cases in %d parts\n", reduced.cases, static_cast<int>(reduced.parts.size()));
  const std::vector<std::string> names = {"subject", "prompt"};
  for (int row = 0; row < static_cast<int>(names.size()); ++row) {
    for (int layer : layers) {
      const auto cell = reduced.At(row, layer);
      std::printf("  %.3f +- %.3f over %.0f with layer %d restored at the last token of the %s\n", cell.mean,
                  cell.deviation, cell.count, layer, names[row].c_str());
    }
  }
  std::fflush(stdout);
  return status;
}

// Ablates every neuron of a layer at every position, and shows partial results after each message.
grpc::Status ShowSweep(Stub& stub) {
  grpc::ClientContext call;
  SetDeadline(call);
  const auto stream = stub.Intervene(&call, Ablations(sonde::v1::COMPONENT_NEURON, {3}, {}));
  Changed changed;
  for (sonde::v1::InterveneResponse message; stream->Read(&message);) {
    changed.Put(message);
    if (!message.has_readings()) continue;
    const auto& column = changed.columns["log_probabilities"];
    int least = -1;
    for (int run = 0; run < static_cast<int>(column.size()); ++run) {
      if (!std::isnan(column[run]) && (least < 0 || column[run] < column[least])) least = run;
    }
    // The last axis varies fastest.
    const auto& axes = changed.context.axes();
    const int position = axes.positions(least % axes.positions_size());
    const int unit = axes.units(least / axes.positions_size() % axes.units_size());
    const int layer = axes.layers(least / axes.positions_size() / axes.units_size());
    std::printf("sweep: %d of %lld runs; the least so far is %.3f without neuron %d of layer %d at \"%s\"\n",
                changed.arrived, static_cast<long long>(changed.context.cost().runs()), std::exp(column[least]), unit,
                layer, changed.context.tokens(position).text().c_str());
    std::fflush(stdout);
  }
  return stream->Finish();
}

// Sends a request that the server refuses. The details of the error say what is wrong.
grpc::Status ShowRefusal(Stub& stub) {
  grpc::ClientContext call;
  SetDeadline(call);
  const auto stream = stub.Intervene(&call, Wrong());
  for (sonde::v1::InterveneResponse message; stream->Read(&message);) {
  }
  const auto status = stream->Finish();
  if (status.error_code() != grpc::StatusCode::INVALID_ARGUMENT) return status;
  const Refusal refusal(status);
  std::cout << "refused: INVALID_ARGUMENT (" << refusal.reason << ")" << std::endl;
  for (const auto& [field, description] : refusal.violations) {
    std::cout << "  " << field << ": " << description << std::endl;
  }
  return grpc::Status::OK;
}

// Cancels a long sweep after its first runs. The server stops computing.
grpc::Status ShowCancel(Stub& stub) {
  grpc::ClientContext call;
  const auto stream = stub.Intervene(&call, Ablations(sonde::v1::COMPONENT_NEURON, {}, {}));
  sonde::v1::InterveneResponse reached;
  while (reached.progress().done() == 0 && stream->Read(&reached)) {
  }
  call.TryCancel();
  for (sonde::v1::InterveneResponse message; stream->Read(&message);) {
  }
  const auto status = stream->Finish();
  if (status.error_code() != grpc::StatusCode::CANCELLED) return status;
  std::cout << "cancelled: CANCELLED after " << reached.progress().done() << " of " << reached.progress().total()
            << " runs" << std::endl;
  return grpc::Status::OK;
}

}  // namespace

int main(int count, char** arguments) {
  const std::string address = count > 1 ? arguments[1] : "localhost:50051";
  const auto stub =
      sonde::v1::InspectionService::NewStub(grpc::CreateChannel(address, grpc::InsecureChannelCredentials()));
  if (count > 2 && std::string(arguments[2]) == "golden") return Golden(*stub);
  for (const auto show : {ShowModel, ShowTrace, ShowFacts, ShowSweep, ShowRefusal, ShowCancel}) {
    const auto status = show(*stub);
    if (status.ok()) continue;
    std::cerr << "error " << status.error_code() << ": " << status.error_message() << std::endl;
    return 1;
  }
  return 0;
}
