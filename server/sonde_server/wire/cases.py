"""Cases: the same question about every prompt of a dataset, and how the answers are joined.

The question is read anew for each case, since what it means depends on the prompt; what does not is read once
(`Reader.once`). A field that is wrong for every case is one fault, whose path is the field's. What is wrong in some
cases alone is told with the case.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from sonde.v1 import inspection_pb2 as pb

from ..errors import Violation
from ..questions.activations import Activations
from ..questions.attribution_patching import AttributionPatching
from ..questions.cases import Cases, Question, Reduction
from ..questions.causal_tracing import CausalTracing
from ..questions.circuit_discovery import CircuitDiscovery
from ..questions.interventions import InterveneQuestion
from ..questions.traces import TraceQuestion
from .activations import check_reducible
from .fields import MOST_VIOLATIONS, Problems, Reader

MOST_LARGEST = 1000
Request = pb.TraceRequest | pb.InterveneRequest
# Reads the question about a case; None where it is faulty.
Read = Callable[[pb.Case, Reader], Question | None]


def read_cases(request: Request, targets: str, reader: Reader, read: Read[Question]) -> Cases[Question]:
    """The questions of all cases, and their reduction. `targets`: the path of those that the request itself has.

    Raises InvalidQuestion with every violation, and Unsupported.
    """
    if request.HasField("prompt"):
        reader.problems.add("prompt", "expected one of prompt and cases, got both")
    most = reader.limits.max_cases
    if most and len(request.cases) > most:
        reader.problems.add("cases", f"expected at most {most} cases, got {len(request.cases)}. Split the request up")
    reduction = _read_reduction(request, reader)
    reader.problems.settle()
    reader = replace(reader, reduced=reduction is not None)
    questions = _read_each(request.cases, targets, reader, read)
    if reduction is not None:
        _check_reduction(questions, reduction, reader)
    reader.problems.settle()
    return Cases(tuple(questions), tuple(case.group for case in request.cases), reduction, request.dry_run)


def _read_each(cases: Sequence[pb.Case], targets: str, reader: Reader, read: Read[Question]) -> list[Question]:
    """The question about each case, until there are as many faults as are told."""
    questions: list[Question] = []
    faults, tokens = _Faults(), 0
    for number, case in enumerate(cases):
        reader.check()
        path = f"cases[{number}]"
        own = replace(
            reader,
            problems=Problems(),
            prompt=f"{path}.prompt",
            sources=f"{path}.sources" if case.sources else "sources",
            targets=f"{path}.targets" if case.targets else targets,
        )
        question = read(case, own)
        if faults.take(number, own.problems):
            break
        if question is not None:
            questions.append(question)
            tokens += question.asked.tokens
        if not reader.check_tokens(tokens, "cases"):
            break
    faults.tell(reader.problems)
    reader.problems.settle()
    return questions


@dataclass(slots=True)
class _Faults:
    """The faults of the cases that were read."""

    found: list[tuple[int, Violation]] = field(default_factory=list)
    refused: Problems | None = None
    cases: int = 0

    def take(self, case: int, problems: Problems) -> bool:
        """Takes the faults of one case. Whether no more need be read."""
        self.cases += 1
        self.found += [(case, violation) for violation in problems.violations]
        if problems.refused is not None:
            self.refused = problems
        return self.refused is not None or len(self.found) >= MOST_VIOLATIONS

    def tell(self, problems: Problems) -> None:
        """Notes all of them; those of a field that is wrong in every case once."""
        wrong: dict[str, set[int]] = defaultdict(set)
        for case, violation in self.found:
            wrong[violation.field].add(case)
        told: set[str] = set()
        for case, violation in self.found:
            if violation.field.startswith("cases["):
                problems.add(violation.field, violation.description)
            elif len(wrong[violation.field]) < self.cases:
                problems.add(f"cases[{case}]", f"{violation.field}: {violation.description}")
            elif violation.field not in told:
                told.add(violation.field)
                problems.add(violation.field, violation.description)
        if self.refused is not None:
            problems.refused = self.refused.refused


def _read_reduction(request: Request, reader: Reader) -> Reduction | None:
    if not request.HasField("reduction"):
        return None
    reduction, problems = request.reduction, reader.problems
    if reduction.every < 0:
        problems.add("reduction.every", f"expected 0 or more cases, got {reduction.every}")
    if not 0 <= reduction.largest <= MOST_LARGEST:
        problems.add("reduction.largest", f"expected 0 to {MOST_LARGEST} values, got {reduction.largest}")
    return Reduction(reduction.every, reduction.largest)


def _check_reduction(questions: Sequence[Question], reduction: Reduction, reader: Reader) -> None:
    """Notes what has no statistics over cases, and the first case that is unlike the others."""
    first = questions[0]
    if isinstance(first, InterveneQuestion):
        _check_intervene(first, reduction, reader)
    else:
        _check_trace(first, reduction, reader)
    alike: Iterable[tuple[str, Callable[[Question], int]]] = (
        ("targets", lambda question: question.asked.columns),
        ("runs", _runs),
    )
    for what, count in alike:
        wanted = count(first)
        for number, question in enumerate(questions):
            if (given := count(question)) != wanted:
                path = f"cases[{number}].targets" if what == "targets" else f"cases[{number}]"
                reader.problems.add(
                    path,
                    f"expected {wanted} {what} in every case of a reduction, as in the first one, got {given}. Where "
                    "positions differ, name them",
                )
                break


def _runs(question: TraceQuestion | InterveneQuestion) -> int:
    return question.plan.count if isinstance(question, InterveneQuestion) else 1


def _check_intervene(question: InterveneQuestion, reduction: Reduction, reader: Reader) -> None:
    readout = question.readout
    _check_no_top(readout.top_k, "readout.top_k", reader)
    if readout.generation is not None:
        reader.problems.add("readout.generation", "expected none in a reduction, because texts have no mean, got one")
    check_reducible(readout.activations, "readout.activations", reader)
    _check_largest(bool(readout.activations), reduction, "readout.activations", reader)


def _check_trace(question: TraceQuestion, reduction: Reduction, reader: Reader) -> None:
    _check_no_top(question.top_k, "top_k", reader)
    method = question.method
    match method:
        case CausalTracing(per_sample=True):
            reader.problems.add(
                "causal_tracing.per_sample", "expected per_sample to be unset in a reduction, which has no samples"
            )
        case AttributionPatching(verify_top=verified) if verified:
            reader.problems.add(
                "attribution_patching.verify_top",
                f"expected 0 in a reduction, because the largest estimates differ between cases, got {verified}",
            )
        case CircuitDiscovery() if reduction.every:
            reader.problems.add(
                "reduction.every", f"expected 0, because a circuit is of all cases together, got {reduction.every}"
            )
        case Activations(sites=sites):
            check_reducible(sites, "activations.sites", reader)
        case _:
            pass
    _check_largest(isinstance(method, Activations), reduction, "activations", reader)


def _check_no_top(top_k: int, path: str, reader: Reader) -> None:
    if top_k:
        reader.problems.add(
            path, f"expected 0 in a reduction, because the top tokens differ between cases, got {top_k}"
        )


def _check_largest(given: bool, reduction: Reduction, path: str, reader: Reader) -> None:
    if reduction.largest and not given:
        reader.problems.add(
            "reduction.largest", f"expected {path}, whose largest values are listed, got a request without"
        )
