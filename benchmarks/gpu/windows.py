"""Whole windows of a published network with random weights: correctness, latency and memory of every form.

    python -m benchmarks.gpu.windows acdc               # eager and graphed forms
    python -m benchmarks.gpu.windows acdc --compile     # forms that need torch.compile, which is slow to start

The forms: the authors' in float32 and under automatic mixed precision (the baseline of all ratios), the project's
network under the same, and the project's in half precision with fused adapters, other formulations of attention and one
CUDA graph. Each is held to the float32 network first. Weights are random: errors of half precision are those of random
weights and say nothing about Dice.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.gpu.attention import fastest, measure_attention
from benchmarks.gpu.authors_form import make_authors_form
from benchmarks.gpu.half_form import Adapters, Choice, HalfNetwork
from benchmarks.gpu.networks import FULL_SIZE, config_of, random_network
from benchmarks.gpu.place import autocast, device, dry, half, on_gpu, set_up
from benchmarks.gpu.project import MaskSAM
from benchmarks.gpu.results import Results
from benchmarks.gpu.timing import free, graphed, median_ms, relative, wait

REPEATS = 15
DRY_FORM = {"acdc": 2, "amos": 4, "synapse": 4}
"""The one half-precision form of a dry run: in Triton's interpreter each takes seconds."""
ALLOWED_FLOAT32_ERROR = 1e-3
"""By the norm of the scores: float32 in another order of summation through the whole network."""
Stages = dict[str, Callable[[], object]]


class HalfForm(NamedTuple):
    """One form of the half-precision network."""

    label: str
    adapters: Adapters
    dtype: torch.dtype
    choice: Choice
    graph: bool = True
    channels_last: bool = False
    compiled: bool = False


def main() -> None:
    """Measure one network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=FULL_SIZE)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--repeats", type=int, default=1 if dry() else REPEATS)
    arguments = parser.parse_args()
    set_up()
    torch.backends.cudnn.benchmark = True  # as the authors' framework does, for all forms alike
    work = Windows(arguments.network, arguments.repeats)
    if arguments.compile:
        work.compiled_forms()
    else:
        work.eager_forms()
    work.results.finish()


class Windows:
    """One network: scores of the float32 network on one window, and every form held to them."""

    def __init__(self, name: str, repeats: int) -> None:
        self.name, self.repeats, self.config = name, repeats, config_of(name)
        self.results = Results(f"windows_{name}")
        started = time.perf_counter()
        self.model = random_network(self.config)
        self.image = torch.randn(1, *self.config.input_shape, device=device())
        wait()
        self.results.put("parameters", sum(parameter.numel() for parameter in self.model.parameters()))
        self.results.put("seconds_to_make", round(time.perf_counter() - started, 1))
        self.state = {key: value.detach().clone() for key, value in self.model.state_dict().items()}
        self.reference = self.model(self.image).float()

    def fresh(self) -> MaskSAM:
        """A float32 network with the same weights."""
        with device():
            model = MaskSAM(self.config).eval().requires_grad_(False)
        model.load_state_dict(self.state)
        return model

    def eager_forms(self) -> None:
        """All forms that need no torch.compile, the baselines first."""
        measure_attention(self.results, self.model, self.repeats)
        self._baselines()
        best = fastest(self.results)
        explicit = Choice("explicit", "explicit")
        other = torch.bfloat16 if on_gpu() else half()
        forms = [
            HalfForm("half, eager adapters, explicit attention", "eager", half(), explicit, graph=False),
            HalfForm("half, fused adapters, best attention", "fused", half(), best, graph=False),
            HalfForm("half, fused adapters, best attention, graph", "fused", half(), best),
            HalfForm("half, early GELU, best attention, graph", "early GELU", half(), best),
            HalfForm("half, early GELU, channels last, graph", "early GELU", half(), best, channels_last=True),
            HalfForm("half, eager adapters, best attention, graph", "eager", half(), best),
            HalfForm("bfloat16, early GELU, best attention, graph", "early GELU", other, best),
        ]
        self._all([forms[DRY_FORM[self.name]]] if dry() else forms)

    def compiled_forms(self) -> None:
        """The forms with compiled regions."""
        if not any(f"attention_{kind}" in self.results.content for kind in ("windowed", "global")):
            measure_attention(self.results, self.model, self.repeats)
        best = fastest(self.results)
        label = "half, {} adapters, best attention, compiled, graph"
        kinds: tuple[Adapters, ...] = ("eager",) if dry() else ("early GELU", "fused")
        self._all([HalfForm(label.format(kind), kind, half(), best, compiled=True) for kind in kinds])
        authors = make_authors_form(self.fresh())
        for block in authors.sam_model.image_encoder.blocks:  # the whole network would unroll them and take minutes
            block.forward = torch.compile(block.forward, dynamic=False, backend=_backend())
        self.results.attempt("forms", "authors' AMP, blocks compiled", partial(self.judged, self._amp(authors)))

    def _baselines(self) -> None:
        put = self.results.attempt
        authors = make_authors_form(self.fresh())
        few = max(1, min(3, self.repeats))
        run = partial(self.judged, lambda: authors(self.image), exact=True, repeats=few)
        put("forms", "authors' float32, eager", run)
        put("forms", "authors' AMP, eager", lambda: self.judged(self._amp(authors), stages=self._stages(authors)))
        authors = self.model  # the other's memory is free again
        free()
        ours = self.fresh()
        put("forms", "project's AMP, eager", lambda: self.judged(self._amp(ours), stages=self._stages(ours)))

    def _all(self, forms: list[HalfForm]) -> None:
        for form in forms:
            self.results.attempt("forms", form.label, partial(self.half, form))
            free()

    def _amp(self, model: MaskSAM) -> Callable[[], Tensor]:
        def run() -> Tensor:
            with autocast():
                return model(self.image)

        return run

    def judged(
        self,
        run: Callable[[], Tensor],
        *,
        exact: bool = False,
        stages: Stages | None = None,
        repeats: int | None = None,
    ) -> dict[str, Any]:
        """Errors first, then times.

        Args:
            run: gives the class scores.
            exact: whether the form computes in float32, so that its error has a limit.
            stages: parts of the form that are timed on their own.
            repeats: how many calls are timed, if not as many as of every form.
        """
        free()
        found = self.compared(run, exact)
        found |= median_ms(run, repeats or self.repeats)
        if on_gpu():
            found["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
        if stages is not None:
            few = max(min(3, self.repeats), self.repeats // 3)
            found["stages_ms"] = {name: median_ms(part, few, warm=1)["median_ms"] for name, part in stages.items()}
        return found

    def compared(self, run: Callable[[], Tensor], exact: bool) -> dict[str, Any]:
        """How far one call's scores are from the float32 network's. Scores must be finite, and near it if `exact`."""
        started = time.perf_counter()
        scores = run().float()
        wait()
        first = time.perf_counter() - started
        same = (scores.argmax(1) == self.reference.argmax(1)).float().mean()
        error, finite = relative(scores, self.reference), bool(scores.isfinite().all())
        return {
            "passed": finite and (not exact or error <= ALLOWED_FLOAT32_ERROR),
            "first_call_s": round(first, 2),
            "score_error": error,
            "max_abs_error": float((scores - self.reference).abs().max()),
            "same_class": float(same),
            "finite": finite,
        }

    def _stages(self, model: MaskSAM) -> Stages:
        """Encoder, generator and decoder of a network under automatic mixed precision."""
        with autocast():
            taps, embedding = model.encode(self.image)
            made = model.prompt_generator(taps, embedding)
        positions = model.sam_model.prompt_encoder.image_positions()

        def decode() -> Tensor:
            prompts = (model.mask_prompts(made.masks), model.box_prompts(made.boxes), made.class_tokens)
            return model.semantic_scores(*model.decode(embedding, *prompts, positions))

        def mixed(run: Callable[[], object]) -> Callable[[], object]:
            def part() -> object:
                with autocast():
                    return run()

            return part

        return {
            "encoder": mixed(lambda: model.encode(self.image)),
            "generator": mixed(lambda: model.prompt_generator(taps, embedding)),
            "decoder": mixed(decode),
        }

    def half(self, form: HalfForm) -> dict[str, Any]:
        """One form in half precision; it has a limit of error in dry runs, where it computes in float32."""
        network = HalfNetwork(
            self.fresh(), form.dtype, form.choice, adapters=form.adapters, channels_last=form.channels_last
        )
        if form.compiled:
            network.compiled(_backend())
        started = time.perf_counter()
        network(self.image)
        wait()
        ready = {"attention": vars(form.choice), "ready_s": round(time.perf_counter() - started, 1)}
        taps, embedding = network.encode(self.image)
        made = network.proposals(taps, embedding)
        stages: Stages = {
            "encoder": lambda: network.encode(self.image),
            "generator": lambda: network.proposals(taps, embedding),
            "decoder": lambda: network.decode(*made),
        }
        run = partial(network, self.image)
        if form.graph and on_gpu():
            stages = {name: graphed(part)[0] for name, part in stages.items()}
            run = partial(_replayed, *graphed(run))
        return ready | self.judged(run, exact=dry(), stages=stages)


def _replayed(replay: Callable[[], object], output: Tensor) -> Tensor:
    replay()
    return output


def _backend() -> str:
    """What torch.compile compiles with; nothing in dry runs, which trace alone."""
    return "inductor" if on_gpu() else "eager"


if __name__ == "__main__":
    main()
