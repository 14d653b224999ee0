"""What a model that learned must beat: counts of neighbours, and the overlap of words.

Shapes: N tokens of text, M places asked about, V vocabulary.
"""

from collections.abc import Iterator

import numpy as np

DISCOUNT = 0.75  # of every count, given to what was not seen (Kneser and Ney, 1995)


class Trigram:
    """Interpolated Kneser-Ney: a token from the nearer and the farther of two neighbours.

    `far`, `near` and `token` [N] are ids below `vocab_size`; an id that was never seen as a neighbour ([MASK], say)
    leaves the shorter context to answer.
    """

    def __init__(self, far: np.ndarray, near: np.ndarray, token: np.ndarray, vocab_size: int):
        self.size = vocab_size
        keys, counts = np.unique((far * vocab_size + near) * vocab_size + token, return_counts=True)
        # Shorter contexts count kinds of longer ones, not occurrences.
        pairs, kinds = np.unique(keys % vocab_size**2, return_counts=True)
        self.tables = [(t // vocab_size, t % vocab_size, c) for t, c in ((pairs, kinds), (keys, counts))]
        unseen = np.bincount(pairs % vocab_size, minlength=vocab_size) + 0.1
        self.unigram = unseen / unseen.sum()

    def __call__(self, far: int, near: int) -> np.ndarray:
        """Probabilities of every token between, before or after the two: [V]"""
        p = self.unigram.copy()
        for (contexts, tokens, counts), context in zip(self.tables, (near, far * self.size + near), strict=True):
            rows = slice(*np.searchsorted(contexts, (context, context + 1)))
            seen = counts[rows]
            if len(seen):
                p *= DISCOUNT * len(seen) / seen.sum()
                p[tokens[rows]] += (seen - DISCOUNT) / seen.sum()
        return p


class BothSides:
    """The token at a place from its two left and its two right neighbours.

    Three `Trigram`s read (left, left), (right, right), and one neighbour of either side. The first alone is the trigram
    model of old; `scores` also mixes the first two, or all three, linearly, with the weights that make a tenth of the
    text likeliest (expectation maximisation); that tenth is kept out of the counts.
    """

    SIDES = ((-2, -1), (2, 1), (1, -1))  # (far, near), as offsets from the place

    def __init__(self, ids: np.ndarray, vocab_size: int):
        places = np.arange(2, len(ids) - 2)
        kept = places // 512 % 10 == 9  # windows of 512 tokens from all over the text
        counted, sample = places[~kept], places[kept][:: max(1, int(kept.sum()) // 3000)]
        self.trigrams = [Trigram(ids[counted + f], ids[counted + n], ids[counted], vocab_size) for f, n in self.SIDES]
        found = np.array([p[:, ids[place]] for place, p in zip(sample, self.each(ids, sample), strict=True)])
        self.weights = {"left-and-right": _likeliest(found[:, :2]), "with-both-sides": _likeliest(found)}

    def each(self, ids: np.ndarray, places: np.ndarray) -> Iterator[np.ndarray]:
        """The three distributions at every place, [3, V]"""
        for place in places:
            near = [(ids[place + f], ids[place + n]) for f, n in self.SIDES]
            yield np.stack([trigram(*pair) for trigram, pair in zip(self.trigrams, near, strict=True)])

    def scores(self, ids: np.ndarray, places: np.ndarray, labels: np.ndarray) -> dict[str, tuple[float, float]]:
        """(bits a label, top-1 accuracy) by how the sides are joined.

        "product" is left x right / unigram: both sides as independent evidence, no weights.
        """
        found: dict[str, list[tuple[float, bool]]] = {}
        for p, label in zip(self.each(ids, places), labels, strict=True):
            product = p[0] * p[1] / self.trigrams[0].unigram
            joined = {"left": p[0]} | {name: weights @ p[: len(weights)] for name, weights in self.weights.items()}
            for name, q in (joined | {"product": product / product.sum()}).items():
                found.setdefault(name, []).append((-np.log2(q[label]), q.argmax() == label))
        return {name: (float(bits), float(top)) for name, (bits, top) in ((n, np.mean(v, 0)) for n, v in found.items())}


def _likeliest(found: np.ndarray) -> np.ndarray:
    """Probabilities that each of some models gave [M, models] -> the weights of their best mixture [models]"""
    weights = np.full(found.shape[1], 1 / found.shape[1])
    for _ in range(50):
        shares = found * weights
        weights = (shares / shares.sum(1, keepdims=True)).mean(0)
    return weights


class Overlap:
    """Does a passage follow another? Logistic regression on how much their words and letters overlap (scikit-learn).

    Features: cosine of TF-IDF vectors of words, of pieces of 2 to 4 letters, shared words by all words, both lengths.
    """

    def __init__(self, couples: list[tuple[str, str]], labels: list[int]):
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        pieces = {"analyzer": "char_wb", "ngram_range": (2, 4), "max_features": 200_000}
        self.vectorizers = [TfidfVectorizer(sublinear_tf=True, **more) for more in ({}, pieces)]
        for vectorizer in self.vectorizers:
            vectorizer.fit([text for couple in couples for text in couple])
        self.model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        self.model.fit(self.features(couples), labels)

    def features(self, couples: list[tuple[str, str]]) -> np.ndarray:
        """[couples, 5]"""
        columns: list[np.ndarray | list] = []
        for vectorizer in self.vectorizers:
            a, b = (vectorizer.transform([couple[side] for couple in couples]) for side in (0, 1))
            columns.append(np.asarray(a.multiply(b).sum(1)).ravel())
        words = [(set(a.lower().split()), set(b.lower().split())) for a, b in couples]
        columns.append([len(a & b) / max(1, len(a | b)) for a, b in words])
        columns += [[float(len(couple[side])) for couple in couples] for side in (0, 1)]
        return np.array(columns).T

    def accuracy(self, couples: list[tuple[str, str]], labels: list[int]) -> float:
        """Share of the couples it tells right."""
        return float(self.model.score(self.features(couples), labels))
