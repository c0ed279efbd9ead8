import numpy as np
import pytest
from scipy.special import expit, softmax

from ris_pipeline.refine.crf import (
    CLIP_ES,
    IRNET,
    MIN_PIXELS,
    CrfSettings,
    DenseCrf,
    NormalizedKernel,
    build_lattice,
    clean_labels,
    fit_to_size,
    odds_of_labels,
    odds_of_scores,
    refine_labels,
)
from ris_pipeline.refine.seeds import compute_seeds


def two_colour_image(rng, hw, left_columns):
    """A red left part and a blue right part, with noise of 2 grey levels."""
    image = np.empty((*hw, 3))
    image[:, :left_columns] = (200, 40, 40)
    image[:, left_columns:] = (40, 60, 180)
    return np.clip(image + rng.normal(0, 2, image.shape), 0, 255).astype(np.uint8)


def exact_kernel(features):
    """Dense Gaussian kernel (N, N) of features (N, d), symmetrically normalised, float64."""
    squared_distance = ((features[:, None] - features[None]) ** 2).sum(axis=-1)
    kernel = np.exp(-squared_distance / 2)
    row_sums = kernel.sum(axis=1)
    return kernel / np.sqrt(row_sums[:, None] * row_sums[None])


def exact_mean_field(image, probability, sigma_xy, sigma_rgb, weight):
    """Probability of label 1, (H, W), by textbook mean field with dense kernels and two label channels.

    `probability` (H, W) of label 1 before; the others are of the bilateral kernel.
    """
    height, width = probability.shape
    yx = np.array([(y, x) for y in range(height) for x in range(width)], float)
    rgb = image.reshape(-1, 3).astype(float)
    spatial = exact_kernel(yx / 3)
    bilateral = exact_kernel(np.hstack([yx / sigma_xy, rgb / sigma_rgb]))
    unary = -np.log(np.stack([1 - probability.ravel(), probability.ravel()], axis=1))
    q = softmax(-unary, axis=1)
    for _ in range(10):
        q = softmax(-unary + 3 * spatial @ q + weight * bilateral @ q, axis=1)
    return q[:, 1].reshape(height, width)


def exact_of_labels(image, hard):
    """The same of hard labels {0, 1} (H, W), with IRNet's numbers."""
    return exact_mean_field(image, np.where(hard == 1, 0.7, 0.3), 50, 5, 10)


def test_mean_field_agrees_with_exact_kernels():
    rng = np.random.default_rng(0)
    hw = (12, 12)
    image = two_colour_image(rng, hw, left_columns=5)
    truth = np.zeros(hw, np.uint8)
    truth[:, :5] = 1
    noisy = truth ^ (rng.random(hw) < 0.2).astype(np.uint8)
    a_corner = np.zeros(hw, np.uint8)
    a_corner[:4, :4] = 1
    hard = np.stack([noisy, a_corner, np.zeros_like(truth)])

    exact = np.stack([exact_of_labels(image, labels) for labels in hard])
    log_odds = DenseCrf(image, IRNET).log_odds(odds_of_labels(hard))
    np.testing.assert_array_equal(refine_labels(image, hard, IRNET), exact > 0.5)
    np.testing.assert_allclose(expit(log_odds), exact, atol=0.002)
    # Probabilities near 0 and 1 hide the lattice's approximation: of log-odds up to ±15 it may take 1.
    np.testing.assert_allclose(log_odds, np.log(exact / (1 - exact)), atol=1.0)


def test_a_soft_map_with_the_numbers_of_clip_es():
    rng = np.random.default_rng(4)
    image = two_colour_image(rng, (12, 12), left_columns=5)
    soft = np.linspace(0.95, 0.05, 12, dtype=np.float32)[None, :] * np.ones((12, 1), np.float32)
    exact = exact_mean_field(image, soft, 67, 3, 4)
    found = expit(DenseCrf(image, CLIP_ES).log_odds(odds_of_scores(soft[None], 1 - soft[None])))[0]
    np.testing.assert_allclose(found, exact, atol=0.02)
    assert (exact[:, :5] > 0.95).all()
    assert (exact[:, 6:] < 0.05).all()


def test_odds_of_scores_have_limits():
    foreground, background = np.array([[0, 0.5, 0.9, 1, 0.2], [1, 0.5, 0.1, 0, 0.8]], np.float32)
    odds = odds_of_scores(foreground, background)
    assert odds.tolist() == pytest.approx([np.log(1e-5), 0, np.log(9), -np.log(1e-5), -np.log(4)], rel=1e-5)


def test_refined_labels_follow_the_colour_edge():
    rng = np.random.default_rng(1)
    image = two_colour_image(rng, (20, 30), left_columns=11)
    hard = np.zeros((1, 20, 30), np.uint8)
    hard[0, :, :11] = 1
    hard[0, 5:8, 3:6] = 0
    hard[0, 10:12, 20:22] = 1
    refined = refine_labels(image, hard, IRNET)
    assert refined.dtype == np.uint8
    assert refined[0, :, :11].all()
    assert not refined[0, :, 11:].any()


@pytest.mark.parametrize("scale", [1, 2])
def test_a_label_is_cleaned_without_its_stripes_at_any_size(scale):
    """A square of white and grey stripes on grey, and a label that reaches two cells too far."""
    truth = np.zeros((120, 160), np.uint8)
    truth[40:88, 40:88] = 1
    image = np.where(truth * (np.indices(truth.shape)[1] % 12 < 6), 255, 120)
    given = np.zeros_like(truth)
    given[38:90, 38:90] = 1
    image, truth, given = (np.kron(array, np.ones((scale, scale))).astype(np.uint8) for array in (image, truth, given))
    image = np.stack([image] * 3, axis=-1)
    np.testing.assert_array_equal(refine_labels(image, given[None], IRNET)[0], image[:, :, 0] == 255)
    cleaned = clean_labels(image, given[None])[0]
    assert (cleaned & truth).sum() / (cleaned | truth).sum() > 0.97 > 0.9 > truth.sum() / given.sum()


def test_what_is_cut_out_of_an_object_comes_back():
    given = np.zeros((100, 100), np.uint8)
    given[20:80, 20:80] = 1
    left = given.copy()
    left[:, 48:52] = 0  # a stripe, narrower than the disk of 5 pixels
    left[20:22] = 0  # a rim
    left[:, 70:] = 0  # an end
    cleaned = clean_labels(np.zeros((100, 100, 3), np.uint8), given[None], lambda *_: left[None].copy())[0]
    assert cleaned[24:78, 20:70].all()
    assert not cleaned[:22].any()
    assert not cleaned[:, 70:].any()


def test_kernels_fit_the_size_of_the_image():
    assert fit_to_size((375, 500)) == CrfSettings(3.0, 3.0, 25.0, 10.0, 5.0)
    assert fit_to_size((250, 100)) == CrfSettings(1.5, 3.0, 12.5, 10.0, 5.0)


def test_a_label_of_which_too_little_is_left_stays():
    given = np.zeros((2, 30, 30), np.uint8)
    given[0, :10, :10], given[1, 3, 3] = 1, 1

    def leave(n):
        return lambda image, labels, settings: labels * (np.arange(900).reshape(30, 30) < n).astype(np.uint8)

    image = np.zeros((30, 30, 3), np.uint8)
    np.testing.assert_array_equal(clean_labels(image, given, leave(39)), given)  # 19 pixels of the first
    kept = clean_labels(image, given, leave(40))
    assert kept[0].sum() == MIN_PIXELS
    np.testing.assert_array_equal(kept[1], given[1])


def test_problems_do_not_touch_each_other():
    rng = np.random.default_rng(2)
    image = rng.integers(0, 255, (9, 14, 3), dtype=np.uint8)
    hard = rng.integers(0, 2, (3, 9, 14), dtype=np.uint8)
    unary = odds_of_labels(hard)
    together = DenseCrf(image, IRNET).log_odds(unary)
    alone = np.concatenate([DenseCrf(image, IRNET).log_odds(unary[i : i + 1]) for i in range(3)])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_barycentric_weights_are_a_partition_of_one():
    features = np.random.default_rng(3).normal(0, 4, (5, 300)).astype(np.float32)
    slice_, blurs = build_lattice(features)
    assert len(blurs) == 6
    assert slice_.data.min() >= -1e-5
    np.testing.assert_allclose(slice_.sum(axis=1), 1, atol=1e-5)
    assert all(abs(blur - blur.T).nnz == 0 for blur in blurs)


def nearest_multiple(point):
    """The nearest integer point to `point` with Σ = 0 and all coordinates multiples of d+1."""
    n_axes = len(point)
    nearest = n_axes * np.round(point / n_axes).astype(int)
    while nearest.sum() != 0:
        step = -int(np.sign(nearest.sum()))
        axis = np.argmax(step * (point - nearest))
        nearest[axis] += step * n_axes
    return nearest


def lattice_by_hand(features):
    """Splat–blur–slice matrix (N, N) of features (N, d), with a dictionary of vertices, one point at a time.

    The enclosing simplex has one vertex of each remainder k, the nearest of its kind; barycentric weights
    solve the linear system Σ weight · vertex = point, Σ weight = 1.
    """
    n_points, d = features.shape
    n_axes = d + 1
    basis = np.zeros((n_axes, d))  # orthogonal columns in the plane Σ = 0, of length √(2/3)·(d+1)
    for i in range(1, n_axes):
        basis[:i, i - 1], basis[i, i - 1] = 1, -i
        basis[:, i - 1] *= np.sqrt(2 / 3) * n_axes / np.sqrt(i * (i + 1))
    vertices, weights = {}, []
    for feature in features:
        point = basis @ feature
        corners = []
        for k in range(n_axes):
            shift = np.array([k] * (n_axes - k) + [k - n_axes] * k)
            corners.append(nearest_multiple(point - shift) + shift)
        system = np.vstack([np.array(corners).T, np.ones(n_axes)])
        share = np.linalg.lstsq(system, np.append(point, 1), rcond=None)[0]
        ids = [vertices.setdefault(tuple(corner), len(vertices)) for corner in corners]
        weights.append((ids, share))
    splat = np.zeros((len(vertices), n_points))
    for point, (ids, share) in enumerate(weights):
        splat[ids, point] = share
    values = splat
    for axis in range(n_axes):
        direction = np.full(n_axes, -1)
        direction[axis] = d
        blurred = values.copy()
        for vertex, row in vertices.items():
            for neighbour in (np.add(vertex, direction), np.subtract(vertex, direction)):
                if tuple(neighbour) in vertices:
                    blurred[row] += values[vertices[tuple(neighbour)]] / 2
        values = blurred
    return splat.T @ values


@pytest.mark.parametrize("d", [2, 5])
def test_kernel_equals_a_lattice_by_hand(d):
    features = np.random.default_rng(4).uniform(-2, 3, (60, d)).astype(np.float32)
    kernel = lattice_by_hand(features.astype(float))
    row_sums = kernel.sum(axis=1)
    expected = 1.5 * kernel / np.sqrt(row_sums[:, None] * row_sums[None])
    filtered = NormalizedKernel(features.T, weight=1.5).filter(np.eye(60, dtype=np.float32))
    np.testing.assert_allclose(filtered, expected, atol=1e-5)


def test_kernel_is_close_to_the_gaussian_on_a_grid():
    y, x = np.indices((24, 24)).reshape(2, -1)
    features = np.stack([x, y]).astype(np.float32) / 3
    impulses = np.zeros((576, 2), np.float32)
    impulses[[12 * 24 + 12, 5 * 24 + 20], [0, 1]] = 1
    filtered = NormalizedKernel(features, weight=2.0).filter(impulses)
    exact = 2 * exact_kernel(features.T.astype(float)) @ impulses
    np.testing.assert_allclose(filtered, exact, atol=0.25 * exact.max())
    np.testing.assert_allclose(filtered.sum(axis=0), exact.sum(axis=0), rtol=0.05)


def test_seeds_equal_those_of_exact_kernels():
    """Confident labels of noisy maps: foreground by map > 0.30, background by neither mask, both cleaned exactly."""
    rng = np.random.default_rng(5)
    hw = (12, 12)
    image = two_colour_image(rng, hw, left_columns=5)
    x = np.indices(hw)[1]
    alone, beside = np.where(x < 5, 0.8, 0.01), np.where(x < 5, 0.8, 0.15)
    maps = np.stack([alone, beside, alone.T]) + rng.uniform(0, 0.1, (3, *hw))
    maps = (maps / maps.max(axis=(1, 2), keepdims=True)).astype(np.float32)
    labels = compute_seeds(maps, image, 0.3, 0.1)
    for response, label in zip(maps, labels, strict=True):
        foreground = exact_of_labels(image, (response > 0.30).astype(np.uint8)) > 0.5
        possible = exact_of_labels(image, (response > 0.10).astype(np.uint8)) > 0.5
        expected = np.full(hw, 255)
        expected[~possible & ~foreground] = 0
        expected[foreground] = 1
        np.testing.assert_array_equal(label, expected)
    assert set(np.unique(labels)) == {0, 1, 255}
