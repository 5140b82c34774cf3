"""The embedder: a timm backbone, a linear projection, the unit sphere.

Shapes: B batch, H height, W width, F features of the backbone, D embedding.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

from facemetric.data.images import Preprocess, normalise
from facemetric.errors import ConfigError, DataError, did_you_mean
from facemetric.faces.finder import FaceFinder, Faces, face_finder
from facemetric.model.pictures import ImageTransform, batches_of, crop_side

if TYPE_CHECKING:
    from collections.abc import Iterable

    from facemetric.model.pictures import Picture

# Images in a network at once on the CPU. Activations beyond the 32 MiB that glibc keeps for itself are pages that
# the kernel hands out again, zeroed, in every layer: at 256 images of 96 pixels that is half of the time.
PIECE = 32


class Embedder(nn.Module):
    """Images to unit vectors: `normalize(neck(projection(dropout(backbone(images)))))`.

    `arch` and `model_args` are what timm needs to build the backbone again; `preprocess` is what an image
    goes through before. The neck is a batch norm that helps a projection train; weights are saved with the
    neck folded into the projection (`folded`). `fingerprint`: SHA-256 of the weights that were loaded, or "".
    `pictures`: "faces" where the weights expect faces cut to the template, "" for other images."""

    fingerprint: str = ""
    pictures: str = ""
    compiled: bool = False  # the backbone, for training

    def __init__(
        self,
        backbone: nn.Module,
        projection: nn.Module,
        *,
        arch: str,
        model_args: dict[str, Any],
        preprocess: Preprocess,
        dropout: float = 0.0,
        neck: bool = False,
    ) -> None:
        super().__init__()
        self.backbone, self.projection = backbone, projection
        self.dropout = nn.Dropout(dropout)
        self.arch, self.model_args, self.preprocess = arch, model_args, preprocess
        self.neck: nn.Module = nn.BatchNorm1d(self.embedding_size) if neck else nn.Identity()

    @property
    def num_features(self) -> int:
        """Numbers that the backbone gives for an image."""
        return feature_count(self.backbone)

    @property
    def embedding_size(self) -> int:
        """Numbers in an embedding."""
        return self.projection.out_features if isinstance(self.projection, nn.Linear) else self.num_features

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return next(self.parameters()).device

    @property
    def transform(self) -> ImageTransform:
        """What turns a PIL image into the tensor (3, H, W) that `forward` takes a batch of."""
        return ImageTransform(self.preprocess)

    def __repr__(self) -> str:
        height, width = self.preprocess.size
        return f"Embedder({self.arch}, {width} x {height} pixels -> {self.embedding_size} numbers, on {self.device})"

    def embed(
        self,
        images: Picture | Iterable[Picture],
        *,
        flip: bool = False,
        batch_size: int = PIECE,
        faces: Faces | FaceFinder = "auto",
    ) -> npt.NDArray[np.float32]:
        """Unit embeddings (N, D), float32, of N photographs or face crops, in their order.

        `images`: paths, PIL images, uint8 arrays (H, W, 3) and uint8 tensors (3, H, W), pixels RGB of 0..255, mixed
        as they come, in a list or from a generator; or one of them; or a batch (N, H, W, 3), a tensor (N, 3, H, W).
        `faces`: "photographs" finds the most prominent face of each, turns it upright and cuts it to the template;
        "crops" checks that each shows a face and leaves it alone; "auto" looks which of the two each is, and is "off",
        pictures as they are, where the weights know no faces (`pictures`); or a FaceFinder of your own making.
        `flip` averages with the mirror image, at twice the cost. Memory holds `batch_size` images at once, and some 64
        photographs. The embedder stays on its device, and in its mode.
        Raises DataError for anything else, for a file that cannot be read, for a picture without a face, with its name
        and the reason, and where there is no image."""
        finder = self.finder(faces)
        emb_BD = []
        was_training = self.training
        self.eval()
        try:
            for pixels_BHWC in batches_of(images, self.transform, batch_size, finder):
                emb_BD.append(self.embed_pixels(pixels_BHWC, flip=flip))
        finally:
            self.train(was_training)
        if not emb_BD:
            raise DataError("no images came; needed is one or more")
        return np.concatenate(emb_BD)

    def finder(
        self, faces: Faces | FaceFinder = "auto", *, detector: str = "", min_quality: float = 0.0
    ) -> FaceFinder | None:
        """What finds the faces for these weights (`face_finder`), its crops as large as the network can use; None
        where pictures are embedded as they are."""
        size, pictures = crop_side(self.preprocess), self.pictures
        return face_finder(faces, pictures=pictures, detector=detector, min_quality=min_quality, size=size)

    def embed_pixels(
        self, pixels_BHWC: npt.NDArray[np.uint8], *, flip: bool = False
    ) -> npt.NDArray[np.float32]:
        """Unit embeddings (B, D) of RGB pixels of the network's own size, which `transform.pixels` gives; the embedder
        is in evaluation mode already."""
        batch = normalise(torch.from_numpy(pixels_BHWC), self.preprocess, self.device)
        return embed_batch(self, batch, flip=flip).cpu().numpy()

    def features(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) -> the backbone's pooled features (B, F)."""
        if self.compiled and not self.training:
            return self.backbone.forward(images)
        return self.backbone(images)

    def project(self, features_BF: Tensor) -> Tensor:
        """Features (B, F) -> embeddings (B, D) before they are put on the unit sphere."""
        return self.neck(self.projection(self.dropout(features_BF)))

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) -> unit embeddings (B, D), float32; pictures go to `embed`.

        Raises DataError for a tensor of another shape, or of whole numbers."""
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise DataError(
                f"the images are a {images.dtype} tensor of shape {tuple(images.shape)}; needed are normalised images "
                "(B, 3, H, W) in floating point: embedder.embed(pictures) takes pixels, embedder.transform normalises"
            )
        return functional.normalize(self.project(self.features(images)).float(), dim=1)

    def folded_projection(self) -> nn.Module:
        """The projection and the neck as one linear layer (a copy), as they compute in evaluation."""
        if not isinstance(self.projection, nn.Linear):
            return nn.Identity()
        linear = nn.Linear(self.num_features, self.embedding_size, device=self.projection.weight.device)
        weight, bias = self.projection.weight.detach(), self.projection.bias.detach()
        if isinstance(self.neck, nn.BatchNorm1d):
            neck = self.neck
            assert neck.running_var is not None
            assert neck.running_mean is not None
            gain = neck.weight.detach() / torch.sqrt(neck.running_var + neck.eps)
            weight, bias = weight * gain[:, None], (bias - neck.running_mean) * gain + neck.bias.detach()
        with torch.no_grad():
            linear.weight.copy_(weight)
            linear.bias.copy_(bias)
        return linear


def in_pieces(work: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """work(images) without gradients, by PIECE images where they lie on the CPU: twice as fast as 256 at once.

    By half as many, and half of these, where the memory of the device does not hold them. Raises ConfigError where it
    does not hold one."""
    size = PIECE if images.device.type == "cpu" else max(1, len(images))
    with torch.inference_mode():
        while True:
            try:
                made = [work(piece) for piece in images.split(size)]
                return made[0] if len(made) == 1 else torch.cat(made)
            except torch.OutOfMemoryError as error:
                size = min(size, len(images))
                if size == 1:
                    height, width = images.shape[2:]
                    raise ConfigError(
                        f"{images.device} ran out of memory with one picture of {width} x {height} pixels; free some "
                        "of it, or set --device cpu"
                    ) from error
                size //= 2


def embed_batch(embedder: Embedder, images: Tensor, *, flip: bool = False) -> Tensor:
    """Normalised images (B, 3, H, W) -> unit embeddings (B, D), without gradients; `flip` averages with the mirror
    image's."""
    emb_BD = in_pieces(embedder, images)
    if flip:
        emb_BD = functional.normalize(emb_BD + in_pieces(embedder, images.flip(3)), dim=1)
    return emb_BD.float()


def feature_count(backbone: nn.Module) -> int:
    """Numbers that a timm model without a classifier gives for an image."""
    size = getattr(backbone, "head_hidden_size", None) or getattr(backbone, "num_features", None)
    assert isinstance(size, int)
    return size


def build_embedder(
    arch: str,
    *,
    preprocess: Preprocess,
    arch_args: Mapping[str, Any] | None = None,
    embedding_size: int = 0,
    dropout: float = 0.0,
    drop_path: float = 0.0,
    pretrained: bool = False,
    neck: bool = False,
) -> Embedder:
    """A new embedder on any timm backbone; `embedding_size` 0 gives the backbone's own features.

    Raises ConfigError for an architecture that timm does not have, with the nearest name."""
    backbone, model_args = build_backbone(
        arch, preprocess.size, args=arch_args or {}, drop_path=drop_path, pretrained=pretrained
    )
    features = feature_count(backbone)
    projection: nn.Module = nn.Linear(features, embedding_size) if embedding_size else nn.Identity()
    return Embedder(
        backbone,
        projection,
        arch=arch,
        model_args=model_args,
        preprocess=preprocess,
        dropout=dropout,
        neck=neck and embedding_size > 0,
    )


def check_arch(arch: str) -> None:
    """Raise ConfigError for an architecture that timm does not have, with the nearest name."""
    if not timm.is_model(arch):
        raise ConfigError(f"timm has no architecture {arch!r}{did_you_mean(arch, timm.list_models())}")


def build_backbone(
    arch: str,
    image_size: tuple[int, int],
    *,
    args: Mapping[str, Any] = MappingProxyType({}),
    drop_path: float = 0.0,
    pretrained: bool = False,
) -> tuple[nn.Module, dict[str, Any]]:
    """A timm model without its classifier, and the arguments beyond its name that rebuild it.

    `args` go to the architecture; those that make timm read files are refused, as weights folders hold them.
    Architectures that are made for one image size (vision transformers) are built for `image_size`."""
    check_arch(arch)
    of_timm = [name for name in args if name in inspect.signature(timm.create_model).parameters]
    if of_timm:
        raise ConfigError(f"{', '.join(of_timm)} is no argument of the architecture {arch}; leave it out")
    pretrained_cfg = timm.get_pretrained_cfg(arch)
    model_args = dict(args)
    if pretrained_cfg is not None and pretrained_cfg.fixed_input_size:
        model_args["img_size"] = image_size
    options: dict[str, Any] = {"drop_path_rate": drop_path} if drop_path else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            backbone = timm.create_model(arch, pretrained=pretrained, num_classes=0, **model_args, **options)
        except TypeError as error:
            raise ConfigError(
                f"{arch} does not take {', '.join([*args, *options]) or 'image size ' + str(image_size)} ({error}); "
                "mend --arch-args, set --drop-path 0 or choose another --arch"
            ) from error
        except (RuntimeError, OSError) as error:  # no network, or weights that do not exist
            raise ConfigError(
                f"timm could not make {arch}{' with its weights' if pretrained else ''}: {str(error).splitlines()[0]}"
                f"{'; go without --pretrained where there is no network' if pretrained else ''}"
            ) from error
        except (AssertionError, ValueError, IndexError) as error:
            if not args:
                raise
            raise ConfigError(
                f"{arch} cannot be built with {dict(args)} ({error}); mend --arch-args"
            ) from error
    check_backbone(backbone, arch, image_size)
    return backbone, model_args


@torch.no_grad()
def check_backbone(backbone: nn.Module, arch: str, image_size: tuple[int, int]) -> None:
    """Raise ConfigError unless the backbone turns an image of this size into one vector."""
    training = backbone.training
    try:
        shape = tuple(backbone.eval()(torch.zeros(1, 3, *image_size)).shape)
    except (RuntimeError, AssertionError, ValueError, AttributeError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"{arch} cannot take pictures of {image_size[1]} x {image_size[0]} ({reason}); change --image-size"
        ) from error
    finally:
        backbone.train(training)
    if len(shape) != 2 or shape[1] != feature_count(backbone):
        raise ConfigError(
            f"{arch} gives features of shape {shape}, not one vector an image; choose another --arch"
        )
