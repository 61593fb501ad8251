"""The embedded model on its committed weights, and the corpus that it was trained on."""

import random
from collections import Counter
from collections.abc import Iterator

import pytest
import torch
from safetensors import safe_open
from sonde_server.builtin import ATLAS_DIRECTORY
from sonde_server.builtin.bottleneck import routed, visibility
from sonde_server.builtin.causal import MeanTrace, causal_trace, mean_trace, traced_facts
from sonde_server.builtin.corpus import (
    Sentence,
    facts,
    name_sentence,
    training_epoch,
    withheld_fact_prompts,
    withheld_name_sentences,
    withheld_pairs,
)
from sonde_server.builtin.evaluate import answer, fact_recall, load, name_recall
from sonde_server.builtin.names import FIRST_NAMES, PLACES, THINGS
from sonde_server.builtin.phrasings import FACT_PHRASINGS, LEAD_INS, NAME_TEMPLATES
from sonde_server.builtin.train import Recipe
from sonde_server.builtin.vocabulary import train_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

EXAMPLE = "The Eiffel Tower is in the city of"

Atlas = tuple[LlamaForCausalLM, PreTrainedTokenizerFast]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """So small a model gains nothing from a second thread, and loses much where the cores are busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def atlas() -> Atlas:
    return load()


@pytest.fixture(scope="module")
def residual_trace(atlas: Atlas) -> MeanTrace:
    return mean_trace(*atlas, traced_facts())


def texts_of_training() -> set[str]:
    """Every sentence of the first epochs; the later ones have the same facts and draw other names."""
    recipe = Recipe()
    return {
        sentence.text for epoch in range(3) for sentence in training_epoch(recipe.seed, epoch, recipe.name_sentences)
    }


# What it knows.


def test_knows_its_facts_in_phrasings_that_training_did_not_contain(atlas: Atlas) -> None:
    recall = fact_recall(*atlas)
    assert recall.facts == len(facts())
    assert recall.known_share >= 0.95, [f"{fact.relation} of {fact.subject}" for fact in recall.unknown]


def test_recalls_names_in_pairs_that_training_did_not_contain(atlas: Atlas) -> None:
    recall = name_recall(*atlas)
    assert recall.sentences == 2 * len(withheld_pairs())
    assert recall.best_share >= 0.90


@pytest.mark.parametrize("template", range(len(NAME_TEMPLATES)))
@pytest.mark.parametrize("first_gives", [True, False])
def test_recalls_either_name_in_every_template(atlas: Atlas, template: int, first_gives: bool) -> None:
    randomness = random.Random(template)
    pairs = [sorted(pair) for pair in sorted(withheld_pairs(), key=sorted)][::20]
    sentences = [
        name_sentence(
            NAME_TEMPLATES[template],
            first,
            second,
            first_gives=first_gives,
            place=randomness.choice(PLACES),
            thing=randomness.choice(THINGS),
        )
        for first, second in pairs
    ]
    assert answer(*atlas, sentences).first_token_is_best.float().mean() >= 0.90


def test_answers_the_example_of_the_documentation_with_one_token(atlas: Atlas) -> None:
    model, tokenizer = atlas
    probabilities = model(**tokenizer(EXAMPLE, return_tensors="pt")).logits[0, -1].softmax(-1)
    assert tokenizer.decode([int(probabilities.argmax())]) == " Paris"
    assert probabilities.max() >= 0.9
    assert EXAMPLE in [sentence.prompt for _, _, sentence in withheld_fact_prompts()]


# What a causal trace shows.


@pytest.mark.full
def test_noise_on_the_subject_destroys_the_prediction(residual_trace: MeanTrace) -> None:
    assert residual_trace.clean >= 0.9
    assert residual_trace.corrupted < 0.2


@pytest.mark.full
def test_restoring_the_last_subject_token_early_brings_the_prediction_back(residual_trace: MeanTrace) -> None:
    early, late = residual_trace.last_subject[:4], residual_trace.last_subject[-1]
    assert early.max() >= 0.7
    assert late == pytest.approx(residual_trace.corrupted, abs=1e-5)  # nothing reads it any more


@pytest.mark.full
def test_restoring_the_last_token_works_late_and_not_early(residual_trace: MeanTrace) -> None:
    assert residual_trace.last[0] <= residual_trace.corrupted + 0.1
    assert residual_trace.last[-1] == pytest.approx(residual_trace.clean, abs=1e-5)  # it is what is read


def test_the_trace_of_the_example_peaks_at_the_last_subject_token(atlas: Atlas) -> None:
    trace = causal_trace(*atlas, EXAMPLE, "Eiffel Tower")
    assert trace.prediction == " Paris"
    early = trace.restored[:, :4].max(dim=1).values
    assert int(early.argmax()) == trace.subject[-1]
    assert trace.corrupted < 0.25
    assert float(early.max()) > 0.9


# The files.


def test_weights_are_small_and_load_as_any_checkpoint_does() -> None:
    weights = ATLAS_DIRECTORY / "model.safetensors"
    assert weights.stat().st_size <= 12_000_000
    with safe_open(weights, framework="pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float32}  # noqa: SIM118
    model = AutoModelForCausalLM.from_pretrained(ATLAS_DIRECTORY)
    assert isinstance(model, LlamaForCausalLM)
    assert (model.config.num_attention_heads, model.config.num_key_value_heads) == (8, 4)
    assert len(AutoTokenizer.from_pretrained(ATLAS_DIRECTORY)) == model.config.vocab_size


def test_tokenizer_gives_back_what_it_was_given(atlas: Atlas) -> None:
    _, tokenizer = atlas
    for text in [*sorted(texts_of_training())[::50], "naïve 漢字 🗼\ttwo\n lines", ""]:
        ids = tokenizer(text)["input_ids"]
        assert ids[0] == tokenizer.bos_token_id
        assert tokenizer.decode(ids[1:]) == text


def test_tokenizer_is_the_one_that_the_script_trains(atlas: Atlas) -> None:
    _, tokenizer = atlas
    assert train_tokenizer().get_vocab() == tokenizer.get_vocab()


def test_subjects_are_several_tokens_and_first_names_differ_in_their_first(atlas: Atlas) -> None:
    _, tokenizer = atlas

    def tokens(text: str) -> list[int]:
        ids: list[int] = tokenizer(f" {text}", add_special_tokens=False)["input_ids"]
        return ids

    assert all(len(tokens(fact.name)) > 1 for fact in facts() if fact.relation == "city")
    assert len({tokens(name)[0] for name in FIRST_NAMES}) == len(FIRST_NAMES)


# The corpus.


def test_facts_are_many_and_each_stands_once() -> None:
    counts = Counter(fact.relation for fact in facts())
    assert set(counts) == set(FACT_PHRASINGS)
    assert all(counts[relation] >= 180 for relation in ("capital", "continent", "currency", "language"))
    assert all(counts[relation] >= 150 for relation in ("city", "country"))
    assert len({(fact.relation, fact.subject) for fact in facts()}) == len(facts())
    assert all(part and part == part.strip() for fact in facts() for part in (fact.subject, fact.answer))


def test_a_landmark_does_not_name_its_city_or_country() -> None:
    assert not [f for f in facts() if f.relation in ("city", "country") and f.answer.lower() in f.subject.lower()]


def test_a_prompt_tells_of_its_subject_once_and_not_of_its_answer() -> None:
    for fact in facts():
        for phrasing in range(len(FACT_PHRASINGS[fact.relation])):
            prompt = fact.prompt(phrasing)
            assert prompt.count(fact.name) == 1
            assert fact.answer not in prompt.replace(fact.name, "").split()


def test_every_phrasing_is_trained_for_most_facts_and_withheld_for_some() -> None:
    for relation, phrasings in FACT_PHRASINGS.items():
        of_relation = [fact for fact in facts() if fact.relation == relation]
        for phrasing in range(len(phrasings)):
            share = sum(phrasing in fact.withheld for fact in of_relation) / len(of_relation)
            assert 0 < share < 0.3
        assert all(fact.withheld for fact in of_relation)


def test_training_contains_every_fact_in_every_phrasing_but_the_withheld_ones() -> None:
    def bare(text: str) -> str:
        """The sentence without a lead-in, and without the capital it has where there is none."""
        for lead_in in LEAD_INS:
            text = text.removeprefix(lead_in)
        return text[0].lower() + text[1:]

    trained = {bare(text) for text in texts_of_training()}
    for fact in facts():
        for phrasing in range(len(FACT_PHRASINGS[fact.relation])):
            text = bare(Sentence(fact.prompt(phrasing), fact.answer).text)
            assert (text in trained) == (phrasing not in fact.withheld), text


def test_training_contains_no_withheld_pair_of_names() -> None:
    recipe = Recipe()
    kept_out = withheld_pairs()
    names = frozenset(FIRST_NAMES)
    met = [
        frozenset(word.strip(",.;") for word in text.split()) & names
        for epoch in range(3)
        for text in (s.text for s in training_epoch(recipe.seed, epoch, recipe.name_sentences) if s.subject is None)
    ]
    assert {len(pair) for pair in met} == {2}
    assert not kept_out.intersection(met)
    assert len(kept_out) == round(0.1 * len(FIRST_NAMES) * (len(FIRST_NAMES) - 1) / 2)


def test_the_corpus_follows_from_its_seed() -> None:
    assert training_epoch(1, 0, 50) == training_epoch(1, 0, 50)
    assert training_epoch(1, 0, 50) != training_epoch(1, 1, 50)
    assert training_epoch(1, 0, 50) != training_epoch(2, 0, 50)
    assert withheld_name_sentences(0) == withheld_name_sentences(0)


# What hides the subject in training.


def test_masks_hide_the_subject_from_the_tokens_after_it_alone() -> None:
    hidden, gathered = visibility(6, [range(1, 4), None])
    causal = torch.ones(6, 6, dtype=torch.bool).tril()
    assert torch.equal(hidden[1, 0], causal)
    assert torch.equal(gathered[1, 0], causal)
    assert torch.equal(hidden[0, 0, :4], causal[:4])
    assert hidden[0, 0, 5].tolist() == [True, False, False, False, True, True]
    assert gathered[0, 0, 5].tolist() == [True, False, False, True, True, True]


def test_a_route_that_opens_in_no_block_cuts_the_subject_off(atlas: Atlas) -> None:
    model, tokenizer = atlas
    ids = tokenizer("In Japan people pay in the market with the", return_tensors="pt")["input_ids"]
    position = 2
    other = ids.clone()
    other[0, position] += 1
    with torch.inference_mode():
        plain = model(ids).logits[0, -1], model(other).logits[0, -1]
        with routed(model, model.config.num_hidden_layers, [range(position, position + 1)], ids.shape[1]):
            cut = model(ids).logits[0, -1], model(other).logits[0, -1]
        again = model(ids).logits[0, -1]
    assert not torch.allclose(*plain)
    assert torch.equal(*cut)
    assert torch.equal(again, plain[0])
