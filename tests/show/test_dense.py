import numpy as np
from PIL import Image

from dinodomain.show.dense import draw_dense, draw_similarity, pca_colours, similarity


def test_pca_colours_separate_two_kinds_of_patches():
    rng = np.random.default_rng(0)
    tokens = rng.normal(0, 0.01, (2, 4, 4, 8))
    tokens[:, :, 2:, 0] += 1.0
    first = pca_colours(tokens)[..., 0]
    assert first[:, :, 2:].min() > 0.9 > 0.1 > first[:, :, :2].max()


def test_similarity_is_the_cosine_to_the_chosen_patch():
    tokens = np.random.default_rng(0).normal(size=(2, 3, 3, 5))
    found = similarity(tokens, 1, (2, 0))
    a, b = tokens[0, 1, 1], tokens[1, 2, 0]
    np.testing.assert_allclose(found[0, 1, 1], a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    np.testing.assert_allclose(found[1, 2, 0], 1.0)


def test_figures_are_written_and_equal_inputs_give_equal_bytes(tmp_path):
    rng = np.random.default_rng(0)
    pictures, tokens, attention = rng.random((2, 16, 16, 3)), rng.normal(size=(2, 4, 4, 8)), rng.random((2, 3, 4, 4))
    for name in ("a", "b"):
        draw_dense(pictures, tokens, attention, tmp_path / f"{name}.png", title="t", notice="made up")
        draw_similarity(pictures, tokens, [(0, 1, 1)], tmp_path / f"{name}2.png", title="t")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with Image.open(tmp_path / "a2.png") as figure:
        assert figure.size[0] > 300
