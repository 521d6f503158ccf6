"""The forms of style-based generators, one after the other, are what the engine draws: truncated, mixed, with noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import fastgen
from fastgen.exports import STYLEGAN
from fastgen_kernels import normals
from tests.engines.stylegans import CASES, generator, make
from tests.engines.test_stylegan import saved

CLOSE = 2e-5  # of images within [-1, 1], as for the engine


@pytest.mark.parametrize("name", CASES)
def test_forms_are_parts_of_a_sample(name: str) -> None:
    engine, network = make(name), generator(name)
    mapping, synthesis, with_noise = (form.make(network) for form in STYLEGAN)
    labels = [] if engine.classes is None else [torch.tensor([4, 0])]
    options = {} if engine.classes is None else {"labels": [4, 0]}
    z = normals([3, 8], 0, "initial", (6,))
    (ws,) = mapping(z, *labels, torch.tensor([0.3, 0.9]), torch.tensor([2, engine.styles]))
    x = torch.cat(
        [
            engine.sample(seeds=[seed], truncation_psi=psi, truncation_cutoff=cutoff, **own)
            for seed, psi, cutoff, own in (
                (3, 0.3, 2, {key: [value[0]] for key, value in options.items()}),
                (8, 0.9, None, {key: [value[1]] for key, value in options.items()}),
            )
        ]
    )
    assert torch.allclose(synthesis(ws)[0].clamp(-1, 1), x, atol=CLOSE)
    noise = [normals([3, 8], i, "step", (1, *shape)) for i, shape in enumerate(network.noise_shapes)]
    random = engine.synthesis(ws, noise_mode="random", seeds=[3, 8])
    assert torch.allclose(with_noise(ws, *noise)[0].clamp(-1, 1), random, atol=CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["stylegan, of labels", "stylegan2"])
def test_files_of_the_command(name: str, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    engine = fastgen.load(saved(tmp_path / "m", name), device="cpu")
    fastgen.export(engine.source, tmp_path / "onnx", check=True)
    sessions = {
        form.name: onnxruntime.InferenceSession(
            str(tmp_path / "onnx" / f"{form.name}.onnx"), providers=["CPUExecutionProvider"]
        )
        for form in STYLEGAN
    }
    labels = {} if engine.classes is None else {"labels": [4, 0, 1]}
    request = engine.request(seeds=[1, 2, 3], truncation_psi=0.6, **labels)
    feed = {
        "z": engine.latents(request).numpy(),
        "truncation_psi": np.full(3, 0.6, np.float32),
        "truncation_cutoff": np.full(3, engine.styles),
        **{key: np.array(value) for key, value in labels.items()},
    }
    (ws,) = sessions["mapping"].run(["ws"], feed)
    (x,) = sessions["synthesis"].run(["x"], {"ws": ws})
    assert np.abs(x.clip(-1, 1) - engine.draw(request).numpy()).max() < CLOSE
    ws[:, :2] = ws[[1, 2, 0], :2]
    (mixed,) = sessions["synthesis"].run(["x"], {"ws": ws})
    options = {"truncation_psi": 0.6, **labels}
    if labels:
        options["labels_b"] = [0, 1, 4]
    assert (
        np.abs(mixed.clip(-1, 1) - engine.mix([1, 2, 3], [2, 3, 1], [0, 1], **options).numpy()).max() < CLOSE
    )
