#include "golden.h"

#include <grpcpp/grpcpp.h>

#include <cctype>
#include <iostream>
#include <limits>
#include <string>
#include <vector>

#include "answers.h"
#include "refusals.h"
#include "requests.h"

namespace {

using Stub = sonde::v1::InspectionService::Stub;

std::string Base64(const std::string& bytes) {
  static const char kDigits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string text;
  for (std::size_t at = 0; at < bytes.size(); at += 3) {
    unsigned group = 0;
    for (std::size_t byte = at; byte < at + 3; ++byte) {
      group = group << 8 | (byte < bytes.size() ? static_cast<unsigned char>(bytes[byte]) : 0U);
    }
    for (std::size_t digit = 0; digit < 4; ++digit) {
      text += at + digit > bytes.size() ? '=' : kDigits[group >> (18 - 6 * digit) & 63];
    }
  }
  return text;
}

void PrintRequest(const std::string& name, const google::protobuf::Message& request) {
  std::cout << name << ".request " << Base64(request.SerializeAsString()) << '\n';
}

template <typename Values>
void Print(const std::string& name, const Values& values) {
  std::cout << name;
  for (const auto value : values) std::cout << ' ' << value;
  std::cout << '\n';
}

template <typename Tokens>
std::vector<int> Ids(const Tokens& tokens) {
  std::vector<int> ids;
  for (const auto& token : tokens) ids.push_back(token.id());
  return ids;
}

void PrintContext(const std::string& name, const sonde::v1::RunContext& context) {
  Print(name + ".tokens", Ids(context.tokens()));
  Print(name + ".targets", Ids(context.targets()));
  std::cout << name << ".position " << context.position() << '\n';
  Print(name + ".clean", context.clean().log_probabilities());
  Print(name + ".clean_logits", context.clean().logits());
  std::cout << name << ".runs " << context.cost().runs() << '\n';
  if (!context.has_axes()) return;
  Print(name + ".layers", context.axes().layers());
  Print(name + ".units", context.axes().units());
}

grpc::Status Model(Stub& stub, int* hidden_size) {
  grpc::ClientContext call;
  sonde::v1::GetModelResponse model;
  const auto status = stub.GetModel(&call, {}, &model);
  if (!status.ok()) return status;
  const auto& decoder = model.stacks(0);
  *hidden_size = decoder.hidden_size();
  std::cout << "model.request\n";
  Print("model.sizes", std::vector<int>{decoder.layers(), decoder.hidden_size(), decoder.heads(),
                                        decoder.key_value_heads(), decoder.head_size(), decoder.neurons(),
                                        model.vocabulary_size()});
  std::cout << "model.parameters " << model.parameters() << '\n';
  std::cout << "model.max_answer_bytes " << model.limits().max_answer_bytes() << '\n';
  return status;
}

grpc::Status Trace(Stub& stub) {
  const auto request = CausalTrace(4, 4294967295);
  PrintRequest("causal_trace", request);
  grpc::ClientContext call;
  const auto stream = stub.Trace(&call, request);
  Traced traced;
  for (sonde::v1::TraceResponse message; stream->Read(&message);) traced.Put(message);
  PrintContext("causal_trace", traced.context);
  Print("causal_trace.corrupted", traced.corruption.probabilities());
  std::cout << "causal_trace.noise_deviation " << traced.corruption.noise_deviation() << '\n';
  for (const auto& [component, grid] : traced.grids) {
    auto name = sonde::v1::Component_Name(component).substr(std::string("COMPONENT_").size());
    for (char& letter : name) letter = static_cast<char>(std::tolower(letter));
    std::vector<double> values;
    for (const auto& [place, probability] : grid) values.push_back(probability);
    Print("causal_trace." + name, values);
  }
  return stream->Finish();
}

grpc::Status Intervene(Stub& stub, const std::string& name, const sonde::v1::InterveneRequest& request) {
  PrintRequest(name, request);
  grpc::ClientContext call;
  const auto stream = stub.Intervene(&call, request);
  Changed changed;
  for (sonde::v1::InterveneResponse message; stream->Read(&message);) changed.Put(message);
  PrintContext(name, changed.context);
  for (const auto& [field, values] : changed.columns) Print(name + "." + field, values);
  std::vector<double> activations;
  for (const auto& [run, values] : changed.activations) {
    activations.insert(activations.end(), values.begin(), values.end());
  }
  if (!activations.empty()) Print(name + ".activations", activations);
  return stream->Finish();
}

void Refused(Stub& stub) {
  PrintRequest("refused", Wrong());
  grpc::ClientContext call;
  const auto stream = stub.Intervene(&call, Wrong());
  for (sonde::v1::InterveneResponse message; stream->Read(&message);) {
  }
  const auto status = stream->Finish();
  const Refusal refusal(status);
  std::cout << "refused.code " << status.error_code() << "\nrefused.reasons " << refusal.reason << '\n';
  for (const auto& [field, description] : refusal.violations) {
    std::cout << "refused.violation " << field << ' ' << description << '\n';
  }
}

}  // namespace

int Golden(Stub& stub) {
  std::cout.precision(std::numeric_limits<float>::max_digits10);
  int hidden_size = 0;
  auto status = Model(stub, &hidden_size);
  if (status.ok()) status = Trace(stub);
  const auto sweep = Ablations(sonde::v1::COMPONENT_HEAD_OUT, {}, {sonde::v1::AXIS_POSITION});
  if (status.ok()) status = Intervene(stub, "sweep", sweep);
  if (status.ok()) status = Intervene(stub, "edits", Edits(hidden_size));
  if (!status.ok()) {
    std::cerr << "error " << status.error_code() << ": " << status.error_message() << std::endl;
    return 1;
  }
  Refused(stub);
  return 0;
}
