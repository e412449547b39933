import numpy as np
import pytest

from hemstitch.errors import DataError, MisuseError
from hemstitch.speech import (
    Corpus,
    FeatureOptions,
    FeatureSet,
    SpeakerEmbedding,
    append_embedding,
    compute_features,
    import_an4,
)

DIM = 5


@pytest.fixture(scope="module")
def made_up():
    """Twelve speakers with three utterances each; a speaker has a mean and a covariance of its own."""
    rng = np.random.default_rng(0)
    pieces, ids = [], []
    for speaker in range(12):
        mean, mix = rng.standard_normal(3), np.eye(3) + 0.3 * rng.standard_normal((3, 3))
        for number in range(3):
            pieces.append(5 + mean + rng.standard_normal((rng.integers(150, 300), 3)) @ mix)
            ids.append(f"s{speaker}-{number}")
    return FeatureSet(frames=np.concatenate(pieces).astype(np.float32), ids=tuple(ids), frame_shift=0.01,
                      offsets=np.cumsum([0, *map(len, pieces)]))


@pytest.fixture(scope="module")
def embedding(made_up):
    return SpeakerEmbedding.fit(made_up, made_up.ids, dim=DIM, prior_frames=50)


def slowly(embedding, frames):
    """The vector frame by frame, as the formulas say, before projection."""
    dim = len(embedding.mean)
    m, S = np.zeros(dim), np.zeros((dim, dim))
    for x in frames:
        z = embedding.whitening @ (x - embedding.mean)
        m += z / (len(frames) + embedding.prior_frames)
        S += (np.outer(z, z) - np.eye(dim)) / (len(frames) + embedding.prior_frames)
    vech = [S[i, j] * (1 if i == j else 2**0.5) for i in range(dim) for j in range(i + 1)]
    return np.array([*m, *vech])


def test_the_vector_is_what_the_formulas_say(made_up, embedding):
    everything = made_up.frames.astype(np.float64)
    np.testing.assert_allclose(embedding.mean, everything.mean(0), atol=1e-6)
    white = (everything - everything.mean(0)) @ embedding.whitening.T
    np.testing.assert_allclose(np.cov(white.T, bias=True), np.eye(3), atol=1e-6)
    vectors = np.stack([slowly(embedding, made_up[name]) for name in made_up.ids])
    for name, vector in zip(made_up.ids, vectors):
        np.testing.assert_allclose(embedding(made_up[name]), embedding.projection @ vector, atol=1e-9)
    variance, directions = np.linalg.eigh(vectors.T @ vectors / len(vectors))
    for k in range(DIM):
        cosine = embedding.projection[k] @ directions[:, -1 - k] * np.sqrt(variance[-1 - k])
        assert abs(cosine) == pytest.approx(1, abs=1e-6)
    projected = vectors @ embedding.projection.T
    np.testing.assert_allclose(projected.T @ projected / len(vectors), np.eye(DIM), atol=1e-6)


def test_no_frames_are_the_average_speaker(embedding):
    np.testing.assert_array_equal(embedding(np.zeros((0, 3))), np.zeros(DIM))
    near = embedding(np.tile(embedding.mean + 1, (2, 1)))
    far = embedding(np.tile(embedding.mean + 1, (2000, 1)))
    np.testing.assert_allclose(near / (2 / 52), far / (2000 / 2050))


def test_online_sees_nothing_that_is_to_come(made_up, embedding):
    frames = made_up["s3-1"]
    online = embedding.online(frames, period=10)
    for t in (0, 9, 10, 57, len(frames) - 1):
        np.testing.assert_allclose(online[t], embedding(frames[: t // 10 * 10 + 1]), atol=1e-9)
    changed = frames.copy()
    changed[60:] = 0
    np.testing.assert_array_equal(embedding.online(changed, period=10)[:60], online[:60])
    np.testing.assert_allclose(embedding.online(frames, period=1)[-1], embedding(frames), atol=1e-9)


def test_whole_speakers_are_told_apart_better_than_utterances_of_one(made_up, embedding):
    vectors = np.stack([embedding(made_up[name]) for name in made_up.ids]).reshape(12, 3, DIM)
    within = vectors.std(axis=1).mean()
    between = vectors.mean(axis=1).std(axis=0).mean()
    assert between > 3 * within


@pytest.mark.parametrize("mode", ["online", "utterance", "speaker"])
def test_vectors_are_appended_to_frames(made_up, embedding, mode):
    speakers = {name: name.split("-")[0] for name in made_up.ids}
    more = append_embedding(made_up, made_up, embedding, speakers, mode)
    assert more.dim == 3 + DIM and more.ids == made_up.ids and more.frames.dtype == np.float32
    np.testing.assert_array_equal(more.frames[:, :3], made_up.frames)
    frames = made_up["s4-2"]
    whole = np.concatenate([made_up[f"s4-{i}"] for i in range(3)])
    expected = {"online": embedding.online(frames), "utterance": embedding(frames)[None],
                "speaker": embedding(whole)[None]}[mode]
    np.testing.assert_allclose(more["s4-2"][:, 3:], np.broadcast_to(expected, (len(frames), DIM)), atol=1e-5)


def test_a_file_holds_all_of_it(embedding, tmp_path):
    embedding.save(tmp_path / "speakers.safetensors")
    back = SpeakerEmbedding.load(tmp_path / "speakers.safetensors")
    for name in ("mean", "whitening", "projection", "prior_frames"):
        np.testing.assert_array_equal(getattr(back, name), getattr(embedding, name))
    (tmp_path / "other").write_text("?")
    with pytest.raises(DataError, match="is no readable speaker embedding"):
        SpeakerEmbedding.load(tmp_path / "other")


def test_what_cannot_be_fitted(made_up, embedding):
    fit = SpeakerEmbedding.fit
    with pytest.raises(DataError, match="5 training utterances are too few for 5 dimensions"):
        fit(made_up, made_up.ids[:5], dim=5)
    with pytest.raises(DataError, match="vary in fewer than 10 directions"):
        fit(made_up, made_up.ids, dim=10)
    with pytest.raises(MisuseError, match="prior_frames > 0"):
        fit(made_up, made_up.ids, prior_frames=0.0)
    flat = FeatureSet(frames=np.zeros_like(made_up.frames), offsets=made_up.offsets, ids=made_up.ids, frame_shift=0.01)
    with pytest.raises(DataError, match="covariance of the training frames is singular"):
        fit(flat, flat.ids, dim=2)
    with pytest.raises(MisuseError, match="period >= 1"):
        embedding.online(made_up["s3-1"], period=0)
    shorter = FeatureSet(frames=made_up.frames[:150], offsets=np.array([0, 150]), ids=("s0-0",), frame_shift=0.01)
    with pytest.raises(DataError, match="'s0-0' has .* frames of features and 150 of cepstra"):
        append_embedding(made_up, shorter, embedding, {})


def test_an4_speakers_of_the_test_part_are_told_apart(shared_data, tmp_path):
    corpus: Corpus = import_an4(shared_data / "an4", tmp_path / "an4")
    cepstra = compute_features(corpus, FeatureOptions(kind="given", normalisation="none"))
    embedding = SpeakerEmbedding.fit(cepstra, [u.id for u in corpus.select("train")], dim=20)
    test = corpus.select("test")
    vectors = np.stack([embedding(cepstra[u.id]) for u in test])
    speakers = np.array([u.speaker for u in test])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    nearest = np.argsort(vectors @ vectors.T - 2 * np.eye(len(test)), axis=1)[:, -1]
    assert (speakers[nearest] == speakers).mean() > 0.6  # one in ten by chance
