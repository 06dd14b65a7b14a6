"""The recogniser stage end to end on six flat-coloured people; killed, resumed, imported."""

from pathlib import Path

import numpy as np
import pytest
import torch

import stages.training.run as training_run
from models.networks.encoders.iresnet import IResNet, IResNetConfig
from stages import recognizer
from stages.photos import packed_images
from stages.runtime.artifacts import read_json, read_safetensors, write_table
from stages.runtime.params import ComputeParams, RecognizerVariant
from stages.training.assembly import held_out
from stages.training.recognizer import verification


def run(
    identities: tuple[Path, Path], variant: RecognizerVariant, compute: ComputeParams, out: Path
) -> bytes:
    recognizer.run(
        variant, compute, name="a", seed=5, packed=identities[0], landmarks=identities[1], out=out,
        work=out.parent / "work",
    )  # fmt: skip
    return (out / "model.safetensors").read_bytes()


def test_trains_exports_and_repeats(
    identities: tuple[Path, Path],
    variant: RecognizerVariant,
    compute: ComputeParams,
    tmp_path: Path,
) -> None:
    first = run(identities, variant, compute, tmp_path / "one" / "a")
    assert run(identities, variant, compute, tmp_path / "two" / "a") == first
    state, facts = read_safetensors(tmp_path / "one" / "a" / "model.safetensors")
    encoder = facts["encoder"]
    net = IResNet(IResNetConfig(*[tuple(encoder[k]) for k in ("layers", "widths")], 8, 28))
    net.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()})
    metrics = read_json(tmp_path / "one" / "a" / "metrics.json")
    assert facts["weights"] == metrics["weights"] == "synthetic-trained"
    assert metrics["parameters"] == sum(p.numel() for p in net.parameters())
    assert metrics["data"]["photographs"] == 18
    assert metrics["data"]["skipped"] == 1
    assert metrics["data"]["validation_identities"] == 2
    assert [row["step"] for row in metrics["history"]] == [3, 6]
    assert not list((tmp_path / "one" / "work" / "train").iterdir())


def test_killed_at_any_checkpoint_gives_the_same_bytes(
    identities: tuple[Path, Path],
    variant: RecognizerVariant,
    compute: ComputeParams,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = run(identities, variant, compute, tmp_path / "whole" / "a")
    save = training_run.FileStore.save
    left = [2]

    def dying(self: training_run.FileStore, *args: object) -> None:
        save(self, *args)  # type: ignore[arg-type]
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(training_run.FileStore, "save", dying)
    with pytest.raises(KeyboardInterrupt):
        run(identities, variant, compute, tmp_path / "killed" / "a")
    assert not (tmp_path / "killed" / "a").exists()
    assert run(identities, variant, compute, tmp_path / "killed" / "a") == whole


def test_other_parameters_do_not_resume(
    identities: tuple[Path, Path],
    variant: RecognizerVariant,
    compute: ComputeParams,
    tmp_path: Path,
) -> None:
    first = run(identities, variant, compute, tmp_path / "a")
    milder = variant.model_copy(update={"margin": 0.05})
    assert run(identities, milder, compute, tmp_path / "a") != first


def test_own_weights_are_checked_and_exported(
    identities: tuple[Path, Path],
    variant: RecognizerVariant,
    compute: ComputeParams,
    tmp_path: Path,
) -> None:
    net = IResNet(IResNetConfig((1, 1, 1, 1), (4, 4, 6, 8), 8, 28))
    torch.save(net.state_dict(), tmp_path / "backbone.pth")
    own = variant.model_copy(update={"weights": tmp_path / "backbone.pth"})
    run(identities, own, compute, tmp_path / "a")
    state, facts = read_safetensors(tmp_path / "a" / "model.safetensors")
    assert facts["weights"] == "user-supplied"
    np.testing.assert_array_equal(state["fc.weight"], net.fc.weight.detach().numpy())

    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "backbone.pth")
    with pytest.raises(ValueError, match=r"recognizer\.\*\.weights: .* does not fit the encoder"):
        run(identities, own, compute, tmp_path / "a")
    missing = variant.model_copy(update={"weights": tmp_path / "absent.pth"})
    with pytest.raises(FileNotFoundError, match="expected your recogniser weights"):
        run(identities, missing, compute, tmp_path / "a")


def test_too_few_identities_say_so(
    identities: tuple[Path, Path],
    variant: RecognizerVariant,
    compute: ComputeParams,
    tmp_path: Path,
) -> None:
    packed, landmarks = identities
    (packed / "images-00001.parquet").unlink()
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    table = pq.read_table(packed / "images-00000.parquet")
    write_table(table.filter(pc.equal(table["subject_id"], "V/n0")), packed / "images-0.parquet")
    (packed / "images-00000.parquet").unlink()
    with pytest.raises(ValueError, match="needs >= 2 training identities"):
        run((packed, landmarks), variant, compute, tmp_path / "a")
    (packed / "images-0.parquet").unlink()
    with pytest.raises(FileNotFoundError, match="run pack@packed"):
        list(packed_images(packed, ["item_id"]))


def test_verification_of_perfect_random_and_reversed_embeddings() -> None:
    labels = np.repeat([0, 1, 2], 4)
    perfect = np.eye(3)[labels] + 0.01 * np.random.default_rng(0).normal(size=(12, 3))
    assert verification(perfect, labels) == {"auc": 1.0, "rank1": 1.0, "error": 0.0}
    flat = verification(np.ones((12, 3)), labels)
    assert flat["auc"] == 0.5
    alone = verification(np.eye(3), np.arange(3))
    assert alone == {"auc": 0.5, "rank1": 0.0, "error": 0.5}


def test_verification_equals_the_pairwise_loop() -> None:
    rng = np.random.default_rng(3)
    e, labels = rng.normal(size=(9, 4)), np.array([0, 0, 1, 1, 1, 2, 2, 3, 3])
    unit = e / np.linalg.norm(e, axis=1, keepdims=True)
    wins = [
        (unit[i] @ unit[j] > unit[k] @ unit[m]) + 0.5 * (unit[i] @ unit[j] == unit[k] @ unit[m])
        for i in range(9) for j in range(i) if labels[i] == labels[j]
        for k in range(9) for m in range(k) if labels[k] != labels[m]
    ]  # fmt: skip
    assert verification(e, labels)["auc"] == pytest.approx(np.mean(wins))


def test_hold_out_is_seeded_and_stable() -> None:
    names = [f"s{i}" for i in range(40)]
    kept = held_out(names, 0.25, 7)
    assert len(kept) == 10
    assert held_out(names[::-1], 0.25, 7) == kept
    assert held_out(names, 0.25, 8) != kept
    more = held_out([*names, "new"], 0.25, 7)
    assert len(more ^ kept) <= 2
    assert held_out(["only"], 0.1, 0) == {"only"}
