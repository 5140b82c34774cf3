"""scikit-learn's view: pictures to vectors, and stage two on features, as transformers of a Pipeline.

    from facemetric.sklearn import FaceEmbedder, TripletProjection

    model = make_pipeline(FaceEmbedder("faces-112"), TripletProjection(random_state=0), KNeighborsClassifier(1))
    model.fit(paths, names).score(more_paths, more_names)

Both can be cloned, searched over (GridSearchCV), pickled by joblib and saved by skops. A `memory=` of the pipeline
embeds the pictures once for a whole search.

Shapes: N images, F features, D embedding.
"""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Integral
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from facemetric.errors import ConfigError, DataError, WeightsError, did_you_mean

if TYPE_CHECKING:
    from torch import nn

    from facemetric.faces.finder import Faces
    from facemetric.model.embedder import Embedder

STARTS = ("identity", "pca", "lda", "random")


class FaceEmbedder(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Pictures to unit embeddings (N, D), float32, by the weights of a name or a folder.

    X is whatever `Embedder.embed` takes: paths, PIL images, uint8 arrays (H, W, 3), or one array (N, H, W, 3); a column
    of paths of a data frame too. `faces` says whether faces are looked for, as there. `flip` averages with the mirror
    image's. `fit` learns nothing: it notes which weights
    the name means, and `transform` refuses others. A pickle holds the name of the weights, not their tensors.
    Raises DataError for a picture that cannot be read, WeightsError for weights."""

    def __init__(
        self,
        weights: str = "faces-112",
        *,
        faces: str = "auto",
        flip: bool = False,
        batch_size: int = 32,
        device: str = "auto",
    ) -> None:
        self.weights = weights
        self.faces = faces
        self.flip = flip
        self.batch_size = batch_size
        self.device = device

    def fit(self, X: Any = None, y: Any = None) -> FaceEmbedder:
        """Note the weights: `fingerprint_`, SHA-256 of their tensors, and `embedding_size_`. X and y are not read."""
        embedder = self._open()
        self.fingerprint_, self.embedding_size_ = embedder.fingerprint, embedder.embedding_size
        return self

    def transform(self, X: Any) -> npt.NDArray[np.float32]:
        """Unit embeddings (N, D) of N pictures, in their order."""
        embedder = self._open()
        noted = getattr(self, "fingerprint_", embedder.fingerprint)
        if embedder.fingerprint != noted:
            raise WeightsError(
                f"the weights {self.weights!r} are others ({embedder.fingerprint[:12]}) than those that fit saw "
                f"({noted[:12]}); fit again, or bring those back"
            )
        pictures, faces = pictures_of(X), cast("Faces", self.faces)
        return embedder.embed(pictures, flip=self.flip, batch_size=self.batch_size, faces=faces)

    def _open(self) -> Embedder:
        """The network, loaded once for these parameters."""
        from facemetric.machine import pick_device
        from facemetric.model.weights.folder import find_weights, read_config
        from facemetric.model.weights.save_load import load_embedder

        folder = find_weights(self.weights)
        key = (str(folder), read_config(folder).get("sha256"), self.device)
        if getattr(self, "_loaded", (None, None))[0] != key:
            self._loaded = (key, load_embedder(folder, pick_device(self.device)))
        return self._loaded[1]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name != "_loaded"}

    @property
    def _n_features_out(self) -> int:
        return self.embedding_size_

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        tags.input_tags.two_d_array = False
        tags.input_tags.one_d_array = True
        tags.input_tags.string = True
        tags.transformer_tags.preserves_dtype = []
        return tags


def pictures_of(X: Any) -> Iterable[Any]:
    """X as `Embedder.embed` takes it: a column of a frame, or an array of paths, as a list.

    Raises DataError for one path, or one picture: scikit-learn's X holds several."""
    if isinstance(X, str) or not isinstance(X, Iterable):
        raise DataError(f"X is {X!r:.60}; needed are several pictures, such as [{X!r:.60}]")
    columns: Any = getattr(X, "columns", None)
    if columns is not None:  # a frame of pandas or polars: what goes through it are its columns' names
        if len(columns) != 1:
            raise DataError(f"X has {len(columns)} columns; needed is the one that holds the paths")
        X = np.asarray(X)
    if hasattr(X, "to_numpy"):  # a series
        return list(X)
    if isinstance(X, np.ndarray) and X.dtype.kind in "OU":
        if X.ndim > 1 and X.size != len(X):
            raise DataError(f"X is of shape {X.shape}; needed is one path a row")
        return [str(each) if isinstance(each, str) else each for each in X.ravel()]
    if isinstance(X, np.ndarray) and X.ndim != 4:
        raise DataError(f"X is an array of shape {X.shape}; needed is (N, H, W, 3) uint8, or paths")
    return X


class TripletProjection(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """A linear projection that brings samples of one label together and parts those of others: facemetric's stage two.

    `fit(X, y)` takes features (N, F) and labels (N,), `transform` gives unit vectors (N, D), whose cosine is the score.
    It learns as `facemetric finetune --freeze backbone` does, with the same options; the miners are exact. A
    `validation_fraction` of the identities is held out whole, and chooses the best epoch, the start among them; where
    it comes to fewer than two identities, all are trained on and the last epoch is kept. Labels that come once are not
    learned from. The same `random_state` gives the same bits on one machine.

    n_components: numbers in an embedding, as many as features where it is None.
    start: identity (the features as they come; fewer components keep most of their cosines), pca, lda or random.
    margin: a number in units of `distance` (squared: 0..4), or "soft".
    components_ (D, F), intercept_ (D,): the projection. loss_curve_: mean loss of each epoch. scores_: the validation
    figure at the start and after each epoch, empty without one. best_epoch_: which is kept, 0 is the start.
    Source: Schroff et al. 2015, arXiv:1503.03832."""

    def __init__(
        self,
        n_components: int | None = None,
        *,
        start: str = "identity",
        miner: str = "semihard",
        margin: float | str = 0.2,
        distance: str = "squared",
        batch_size: int = 512,
        images_per_identity: int = 4,
        epochs: int = 20,
        lr: float = 1e-3,
        weight_decay: float = 1e-4,
        validation_fraction: float = 0.1,
        random_state: Any = None,
    ) -> None:
        self.n_components = n_components
        self.start = start
        self.miner = miner
        self.margin = margin
        self.distance = distance
        self.batch_size = batch_size
        self.images_per_identity = images_per_identity
        self.epochs = epochs
        self.lr = lr
        self.weight_decay = weight_decay
        self.validation_fraction = validation_fraction
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> TripletProjection:
        """Learn from features (N, F) and labels (N,).

        Raises DataError without two labels that come twice, ConfigError for parameters, both ValueError."""
        import torch

        from facemetric.training.projection import Recipe, as_examples, learn_projection, split_identities

        X, y = validate_data(self, X, y, dtype=(np.float64, np.float32), ensure_min_samples=2)
        check_classification_targets(y)
        if not 0 <= self.validation_fraction < 1:
            raise ConfigError(
                f"validation_fraction is {self.validation_fraction}; it is a share, 0 to below 1"
            )
        labels = np.unique(y, return_inverse=True)[1]
        seed = seed_of(self.random_state)
        recipe = Recipe(
            miner=self.miner,
            margin=self.margin,
            distance=self.distance,
            batch_size=self.batch_size,
            images_per_identity=self.images_per_identity,
            epochs=self.epochs,
            lr=self.lr,
            weight_decay=self.weight_decay,
            seed=seed,
        )
        train, held = split_identities(labels, self.validation_fraction, seed)
        with torch.random.fork_rng(devices=[]):  # a new layer draws from the global state
            start = start_of(self.start, X[train], labels[train], self.n_components, seed)
        learned = learn_projection(
            as_examples(X[train], labels[train]),
            start,
            recipe,
            as_examples(X[held], labels[held]) if len(held) else None,
        )
        self.components_ = learned.projection.weight.detach().numpy().astype(np.float64)
        self.intercept_ = learned.projection.bias.detach().numpy().astype(np.float64)
        self.loss_curve_, self.scores_ = np.array(learned.losses), np.array(learned.scores)
        self.best_epoch_ = learned.best_epoch
        return self

    def transform(self, X: Any) -> npt.NDArray[Any]:
        """Unit embeddings (N, D) of features (N, F), in their precision; a row that is mapped to 0 stays 0."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=(np.float64, np.float32), reset=False)
        emb_ND = X @ self.components_.T.astype(X.dtype) + self.intercept_.astype(X.dtype)
        length_N1 = np.linalg.norm(emb_ND, axis=1, keepdims=True)
        return emb_ND / np.where(length_N1 > 0, length_N1, 1)

    @property
    def _n_features_out(self) -> int:
        return len(self.components_)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


def seed_of(random_state: Any) -> int:
    """A whole number from what scikit-learn takes as random_state; a whole number is itself."""
    if isinstance(random_state, Integral):
        return int(random_state)
    return int(check_random_state(random_state).randint(2**31 - 1))


def start_of(
    kind: str, features_NF: npt.NDArray[Any], labels_N: npt.NDArray[Any], size: int | None, seed: int
) -> nn.Linear:
    """The linear layer F -> D to begin with. Raises ConfigError where the data cannot give so many directions."""
    from facemetric.model.projections import linear_of, start_directions

    if kind not in STARTS:
        raise ConfigError(f"unknown start {kind!r}{did_you_mean(str(kind), STARTS)}")
    features = features_NF.shape[1]
    if size is not None and (not isinstance(size, Integral) or not 1 <= size <= features):
        raise ConfigError(
            f"n_components is {size!r}; X has {features} features, so it is a whole number 1..{features}"
        )
    size = features if size is None else int(size)
    if kind != "identity":
        return start_directions(kind, features_NF, labels_N, size=size, seed=seed, option="n_components")
    if size == features:
        return linear_of(np.eye(features), np.zeros(features))
    wide_NF = np.asarray(features_NF, np.float64)
    axes_FD = np.linalg.eigh(wide_NF.T @ wide_NF)[1][:, ::-1][
        :, :size
    ]  # not centred: cosines are about the origin
    signs_D = np.sign(axes_FD[np.abs(axes_FD).argmax(0), np.arange(size)])  # an axis has no sign of its own
    return linear_of((axes_FD * signs_D).T, np.zeros(size))
