"""Agreement with TRL's own code on random log-probs; skipped where TRL (extra `test`) is not installed.

Known disagreements are listed in docs/objectives.md, and tested here as such.
"""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest

from smallr.losses.preference import LOSSES, Divergence, Pairs, kl_estimate, kto, parse

pytestmark = pytest.mark.parity

pytest.importorskip("trl", reason="TRL is not installed: pip install trl")
torch = pytest.importorskip("torch")

COUNT, LENGTH, PROMPT = 5, 12, 3
# Ours -> TRL's; ORPO, SimPO and CPO have trainers of their own.
SAME = {
    "sigmoid": "sigmoid",
    "sigmoid_norm": "sigmoid_norm",
    "robust": "robust",
    "hinge": "hinge",
    "ipo_norm": "ipo",
    "exo_pair": "exo_pair",
    "nca_pair": "nca_pair",
    "bco_pair": "bco_pair",
    "sppo_hard": "sppo_hard",
    "aot": "aot",
    "aot_unpaired": "aot_unpaired",
    "apo_zero": "apo_zero",
    "apo_down": "apo_down",
    "discopop": "discopop",
}


class Case:
    """Per-token log-probs of padded pairs, as TRL's trainer sees them, and the same summed, as ours."""

    def __init__(self, equal_lengths: bool = False, seed: int = 0):
        rng = np.random.default_rng(seed)
        self.lengths = rng.integers(3, LENGTH, (2, COUNT))
        if equal_lengths:
            self.lengths[:] = 7
        # [chosen; rejected] x positions, prompt first; the first position predicts nothing.
        self.mask = np.zeros((2 * COUNT, PROMPT + LENGTH), np.int64)
        for row, length in enumerate(self.lengths.ravel()):
            self.mask[row, PROMPT : PROMPT + length] = 1
        self.policy, self.reference = (-rng.exponential(0.8, self.mask.shape) * self.mask for _ in range(2))
        self.policy, self.reference = (x.astype(np.float32)[:, 1:] for x in (self.policy, self.reference))
        self.squares = (-rng.exponential(0.5, self.mask.shape) * self.mask).astype(np.float32)[:, 1:]

    def sums(self, values, alpha=1.0):
        """[2, pairs]; tokens behind the length of the shorter completion count alpha."""
        index = np.cumsum(self.mask[:, 1:], axis=1) - 1
        shared = np.tile(self.lengths.min(0), 2)[:, None]
        return (values * np.where(index < shared, 1.0, alpha)).sum(1).reshape(2, COUNT)

    def pairs(self, beta, alpha=1.0) -> Pairs:
        policy, reference = self.sums(self.policy, alpha), self.sums(self.reference, alpha)
        fields = (*policy, *reference, *self.lengths, np.full(COUNT, beta), np.ones(COUNT))
        return Pairs(*(np.asarray(field, np.float32) for field in fields))

    def trl(
        self, losses, *, beta, weights=None, divergence="reverse_kl", coefficient=0.5, ld_alpha=None, **options
    ) -> float:
        """TRL's loss of the batch, from a trainer that consists of its options alone."""
        from trl import DPOTrainer

        def model(log_probs):
            ones = torch.ones(log_probs.shape)
            outputs = SimpleNamespace(
                log_probs=torch.tensor(log_probs),
                entropy=ones,
                mean_logits=ones,
                is_top1=ones.bool(),
                log_sum_sq_probs=torch.tensor(self.squares),
            )
            call = lambda **_: outputs  # noqa: E731
            return call

        policy = _Model(model(self.policy))
        trainer = SimpleNamespace(
            model=SimpleNamespace(training=True),
            ref_model=model(self.reference),
            accelerator=SimpleNamespace(device="cpu", gather_for_metrics=_same, gather=_same),
            aux_loss_enabled=False,
            precompute_ref_logps=False,
            args=SimpleNamespace(gradient_checkpointing_kwargs=None, discopop_tau=0.05),
            beta=beta,
            label_smoothing=options.get("label_smoothing", 0.0),
            loss_types=losses,
            loss_weights=weights or [1.0] * len(losses),
            f_divergence_type=divergence,
            f_alpha_divergence_coef=coefficient,
            ld_alpha=ld_alpha,
            use_weighting=options.get("use_weighting", False),
            _metrics={"train": _Anything()},
            _total_train_tokens=0,
            _tp_size=1,
        )
        mask = torch.tensor(self.mask)
        inputs = {"completion_mask": mask, "input_ids": torch.zeros_like(mask), "attention_mask": torch.ones_like(mask)}
        return float(DPOTrainer._compute_loss(trainer, policy, inputs, False))


class _Anything(dict):
    def __missing__(self, key):
        self[key] = []
        return self[key]


class _Model:
    def __init__(self, function):
        self.function, self.training = function, True

    def __call__(self, **inputs):
        return self.function(**inputs)


def _same(x):
    return x


@pytest.fixture(autouse=True)
def no_checkpointing(monkeypatch):
    """The stub has no gradient checkpointing to switch off."""
    from trl.trainer import dpo_trainer

    monkeypatch.setattr(dpo_trainer, "disable_gradient_checkpointing", lambda *_: nullcontext())
    monkeypatch.setattr(dpo_trainer, "is_peft_model", lambda _: False)


def ours(expression, pairs, divergence="reverse_kl", **given) -> np.ndarray:
    mix, link = parse(expression), Divergence.parse(divergence)
    values = {name: field.default for name, field in mix.fields.items()} | given
    return np.asarray(mix(pairs, values, None if link.is_default else link.scored(pairs)))


@pytest.mark.parametrize("name", SAME)
def test_the_same_loss(name):
    case = Case()
    smoothing = {"exo_pair": 1e-3, "robust": 0.1, "aot": 0.1, "aot_unpaired": 0.1}.get(name, 0.0)
    given = {"label_smoothing": smoothing} if "label_smoothing" in LOSSES[name].fields else {}
    for beta in (0.05, 0.5):
        theirs = case.trl([SAME[name]], beta=beta, label_smoothing=smoothing)
        assert ours(name, case.pairs(beta), **given).mean() == pytest.approx(theirs, rel=2e-5)


@pytest.mark.parametrize("name", ["sigmoid", "hinge", "ipo_norm", "exo_pair", "robust", "sigmoid_norm", "discopop"])
@pytest.mark.parametrize(
    ("divergence", "theirs", "coefficient"),
    [("forward_kl", "forward_kl", 0.5), ("js", "js_divergence", 0.5), ("alpha:0.3", "alpha_divergence", 0.7)],
)
def test_the_same_divergence_up_to_the_parameter_of_alpha(name, divergence, theirs, coefficient):
    case = Case()
    smoothing = 1e-3 if name == "exo_pair" else 0.0
    given = {"label_smoothing": smoothing} if "label_smoothing" in LOSSES[name].fields else {}
    expected = case.trl([SAME[name]], beta=0.1, divergence=theirs, coefficient=coefficient, label_smoothing=smoothing)
    assert ours(name, case.pairs(0.1), divergence, **given).mean() == pytest.approx(expected, rel=5e-5)


def test_the_same_length_desensitised_sums():
    case = Case()
    expected = case.trl(["sigmoid"], beta=0.3, ld_alpha=0.4)
    assert ours("sigmoid", case.pairs(0.3, alpha=0.4)).mean() == pytest.approx(expected, rel=1e-5)


def test_the_same_wpo_weights():
    import jax.numpy as jnp

    from smallr.losses.preference import likelihood_weight

    case = Case()
    scored = case.mask[:, 1:].astype(bool)
    rows = [
        np.concatenate([x[i], x[COUNT + i]])[None] for x in (case.policy, case.squares, scored) for i in range(COUNT)
    ]
    policy, squares, used = rows[:COUNT], rows[COUNT : 2 * COUNT], rows[2 * COUNT :]
    weights = []
    for i in range(COUNT):
        completion = np.repeat([0, 1], scored.shape[1])[None]
        lengths = jnp.asarray(case.lengths[:, i], jnp.float32)[None, :, None]
        weights.append(float(likelihood_weight(policy[i], squares[i], completion, used[i], lengths)[0, 0]))
    expected = case.trl(["hinge"], beta=0.3, use_weighting=True)
    assert (ours("hinge", case.pairs(0.3)) * weights).mean() == pytest.approx(expected, rel=1e-5)


def test_the_same_mix_where_completions_are_equally_long():
    """With other lengths the SFT terms differ: ours is a mean over pairs of means over tokens."""
    expected = Case(equal_lengths=True).trl(["sigmoid", "bco_pair", "sft"], weights=[0.8, 0.2, 1.0], beta=0.1)
    assert ours("mpo", Case(equal_lengths=True).pairs(0.1)).mean() == pytest.approx(expected, rel=1e-5)
    unequal = Case()
    assert ours("sft", unequal.pairs(0.1)).mean() != pytest.approx(unequal.trl(["sft"], beta=0.1), rel=1e-3)


def test_trl_ignores_label_smoothing_of_the_plain_sigmoid():
    case = Case()
    plain = case.trl(["sigmoid"], beta=0.5)
    assert case.trl(["sigmoid"], beta=0.5, label_smoothing=0.2) == plain
    assert ours("sigmoid", case.pairs(0.5), label_smoothing=0.2).mean() != pytest.approx(plain, rel=1e-3)


def test_trls_ipo_is_a_mean_over_tokens_and_the_papers_is_not():
    case = Case()
    assert ours("ipo", case.pairs(0.5)).mean() != pytest.approx(case.trl(["ipo"], beta=0.5), rel=1e-2)


@pytest.mark.parametrize(("name", "loss_type"), [("cpo_prefer", "sigmoid"), ("simpo", "simpo")])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_same_cpo_and_simpo(name, loss_type, smoothing):
    from trl.experimental.cpo import CPOTrainer

    pairs = Case().pairs(0.5)
    trainer = SimpleNamespace(
        alpha=0.0,
        beta=0.5,
        simpo_gamma=0.7,
        loss_type=loss_type,
        label_smoothing=smoothing,
        accelerator=SimpleNamespace(device="cpu"),
    )
    both = (pairs.per_token() if name == "simpo" else pairs)[:2]
    theirs = CPOTrainer.cpo_loss(trainer, *(torch.tensor(np.asarray(each)) for each in both))[0]
    given = {"label_smoothing": smoothing} | ({"simpo_gamma": 0.7} if name == "simpo" else {})
    np.testing.assert_allclose(ours(name, pairs, **given), theirs, rtol=2e-5)


def test_the_same_odds_ratio():
    from trl.experimental.orpo import ORPOTrainer

    pairs = Case().pairs(0.1)
    trainer = SimpleNamespace(beta=0.1, accelerator=SimpleNamespace(device="cpu"))
    both = [torch.tensor(np.asarray(each)) for each in pairs.per_token()[:2]]
    theirs = ORPOTrainer.odds_ratio_loss(trainer, *both)[0]
    np.testing.assert_allclose(-0.1 * ours("odds_ratio", pairs), theirs, rtol=2e-5)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_same_kto(sign):
    from trl.trainer.kto_trainer import KTOTrainer

    case = Case()
    labels = np.array([True, False, True, True, False])
    mismatched = np.random.default_rng(5).normal(0.5 * sign, 0.1, COUNT).astype(np.float32)
    policy, reference = case.sums(case.policy)[0], case.sums(case.reference)[0]

    def model(values):
        values = torch.tensor(values[:COUNT])
        ones = torch.ones(values.shape)
        fields = {"log_probs": values, "entropy": ones, "mean_logits": ones, "is_top1": ones.bool()}
        return lambda **_: SimpleNamespace(**fields)

    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True),
        ref_model=model(case.reference),
        accelerator=SimpleNamespace(device="cpu", gather_for_metrics=_same, gather=_same),
        aux_loss_enabled=False,
        precompute_ref_logps=False,
        calculate_KL=True,
        args=SimpleNamespace(gradient_checkpointing_kwargs=None),
        beta=0.2,
        loss_type="kto",
        desirable_weight=1.3,
        undesirable_weight=0.6,
        _metrics={"train": _Anything()},
        _total_train_tokens=0,
        _tp_size=1,
    )
    trainer._compute_kl_logps = lambda m, _: torch.tensor(mismatched if m is not trainer.ref_model else 0 * mismatched)
    mask = torch.tensor(case.mask[:COUNT])
    inputs = {"completion_mask": mask, "input_ids": mask, "attention_mask": mask, "label": torch.tensor(labels)}
    with pytest.MonkeyPatch.context() as patch:
        import trl.trainer.kto_trainer as module

        patch.setattr(module, "disable_gradient_checkpointing", lambda *_: nullcontext())
        patch.setattr(module, "is_peft_model", lambda _: False)
        theirs = KTOTrainer._compute_loss(trainer, model(case.policy), inputs, False)
    kl = kl_estimate(mismatched, np.ones(COUNT))
    losses = kto(np.float32(policy - reference), kl, labels, 0.2, 1.3, 0.6)
    assert float(kl) == pytest.approx(max(0.0, mismatched.mean()), rel=1e-5)
    assert losses.mean() == pytest.approx(float(theirs), rel=1e-5)
