import numpy as np

from hemstitch.speech import Gaussians


def test_each_pdf_has_the_density_of_its_frames():
    from scipy.stats import multivariate_normal

    random = np.random.default_rng(0)
    pdfs = random.integers(0, 3, 200)
    frames = random.normal(size=(200, 4)) * [1, 2, 0.5, 3] + pdfs[:, None] + 7.0
    found = Gaussians.estimate(frames, pdfs, 3).loglikelihoods(frames)
    for pdf in range(3):
        mine = frames[pdfs == pdf]
        expected = multivariate_normal(mine.mean(0), np.diag(mine.var(0))).logpdf(frames)
        np.testing.assert_allclose(found[:, pdf], expected, rtol=1e-4, atol=1e-4)


def test_a_pdf_without_frames_takes_those_of_all_and_constant_features_do_no_harm():
    frames = np.array([[0.0, 5.0], [2.0, 5.0], [4.0, 5.0], [6.0, 5.0]])
    found = Gaussians.estimate(frames, np.array([0, 0, 1, 1]), 4).loglikelihoods(frames)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[:, 2], found[:, 3])
    assert (found[:2].argmax(1) == 0).all() and (found[2:, :2].argmax(1) == 1).all()
