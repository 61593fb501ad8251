#include "requests.h"

#include <string>
#include <utility>

#include "tensors.h"

namespace {

const std::string kSubject = "The Eiffel Tower";
const std::string kPrompt = kSubject + " is in the city of";

}  // namespace

sonde::v1::TraceRequest CausalTrace(int samples, std::int64_t seed) {
  sonde::v1::TraceRequest request;
  request.mutable_prompt()->set_text(kPrompt);
  request.add_targets()->set_text(" Paris");
  auto* method = request.mutable_causal_tracing();
  method->set_subject_text(kSubject);
  method->set_window(3);
  method->mutable_gaussian()->set_samples(samples);
  method->mutable_gaussian()->set_seed(seed);
  return request;
}

sonde::v1::TraceRequest Facts(const std::vector<int>& layers) {
  const std::vector<std::pair<std::string, std::string>> landmarks = {
      {"The Eiffel Tower", " Paris"}, {"The Louvre", " Paris"}, {"The Colosseum", " Rome"}, {"Big Ben", " London"}};
  sonde::v1::TraceRequest request;
  for (const auto& [name, city] : landmarks) {
    auto* one = request.add_cases();
    one->mutable_prompt()->set_text(name + " is in the city of");
    auto* span = one->mutable_prompt()->add_spans();
    span->set_name("subject");
    span->set_text(name);
    one->add_targets()->set_text(city);
  }
  request.mutable_reduction()->set_every(2);
  auto* method = request.mutable_causal_tracing();
  method->mutable_named_subject()->set_span("subject");
  // The places where states are restored, alike in prompts of unequal length: the last token of the subject, and of the
  // prompt.
  auto* last = method->add_named_positions();
  last->set_span("subject");
  last->set_part(sonde::v1::SPAN_PART_LAST);
  method->add_named_positions()->set_part(sonde::v1::SPAN_PART_LAST);
  method->add_components(sonde::v1::COMPONENT_RESIDUAL_POST);
  for (int layer : layers) method->add_layers(layer);
  method->mutable_gaussian()->set_samples(5);
  return request;
}

sonde::v1::InterveneRequest Ablations(sonde::v1::Component component, const std::vector<int>& layers,
                                      const std::vector<sonde::v1::Axis>& together) {
  sonde::v1::InterveneRequest request;
  request.mutable_prompt()->set_text(kPrompt);
  auto* edit = request.mutable_sweep()->mutable_edit();
  edit->mutable_site()->set_component(component);
  for (int layer : layers) edit->mutable_site()->add_layers(layer);
  edit->set_scale(0);
  for (auto axis : together) request.mutable_sweep()->add_together(axis);
  auto* readout = request.mutable_readout();
  auto* target = readout->add_targets();
  target->set_text(" Paris");
  target->set_contrast_text(" Rome");
  readout->set_position(-1);
  readout->set_top_k(3);
  readout->set_kl_divergence(true);
  return request;
}

sonde::v1::InterveneRequest Wrong() {
  sonde::v1::InterveneRequest request;
  request.mutable_prompt()->set_text(kPrompt);
  auto* edit = request.mutable_list()->add_interventions()->add_edits();
  edit->mutable_site()->set_component(sonde::v1::COMPONENT_NEURON);
  edit->mutable_site()->add_layers(99);
  edit->mutable_site()->add_units(-1);
  edit->set_scale(0);
  return request;
}

sonde::v1::InterveneRequest Edits(int hidden_size) {
  sonde::v1::InterveneRequest request;
  for (int id = 10; id < 16; ++id) request.mutable_prompt()->mutable_token_ids()->add_ids(id);

  auto* steered = request.mutable_list()->add_interventions()->add_edits();
  steered->mutable_site()->set_component(sonde::v1::COMPONENT_RESIDUAL_POST);
  steered->mutable_site()->add_layers(0);
  steered->mutable_site()->set_from_position(0);
  std::vector<float> direction;
  for (int index = 0; index < hidden_size; ++index) direction.push_back(static_cast<float>(index % 7 - 3) / 8);
  *steered->mutable_add() = Float32(direction, {hidden_size});

  auto* set = request.mutable_list()->add_interventions()->add_edits();
  set->mutable_site()->set_component(sonde::v1::COMPONENT_HEAD_OUT);
  set->mutable_site()->add_layers(4);
  set->mutable_site()->add_units(0);
  set->mutable_site()->add_positions(-1);
  *set->mutable_set() = Float32({0.25F}, {});

  auto* both = request.mutable_list()->add_interventions();
  auto* noise = both->add_edits();
  noise->mutable_site()->set_component(sonde::v1::COMPONENT_TOKEN_EMBEDDING);
  noise->mutable_site()->add_positions(1);
  noise->mutable_noise()->set_standard_deviation(0.5F);
  noise->mutable_noise()->set_seed(0);
  auto* knockout = both->add_edits();
  knockout->mutable_site()->set_component(sonde::v1::COMPONENT_ATTENTION_SCORES);
  for (int layer : {1, 2}) knockout->mutable_site()->add_layers(layer);
  knockout->mutable_site()->add_positions(-1);
  knockout->mutable_knockout()->add_key_positions(0);

  auto* readout = request.mutable_readout();
  readout->add_targets()->set_id(0);
  auto* compared = readout->add_targets();
  compared->set_id(20);
  compared->set_contrast_id(0);
  auto* read = readout->add_activations();
  read->set_component(sonde::v1::COMPONENT_NEURON);
  read->add_layers(7);
  read->add_positions(-1);
  return request;
}
