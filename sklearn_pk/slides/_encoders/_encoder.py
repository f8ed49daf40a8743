"""Encoder: how a tile encoder is built, fed and pooled."""

# SPDX-License-Identifier: BSD-3-Clause

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from ._inference import apply_transform

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_POOLINGS = ("model", "mean", "token", "token+mean")


@dataclass(frozen=True)
class Encoder:
    """
    Description of a tile encoder: its model, its input and its output.

    Parameters
    ----------
    name : str
        Name in errors and in the store.
    architecture : str or torch.nn.Module
        Name of a model in timm, or a module with its weights that maps (batch, 3, height,
        width) to (batch, n_features).
    width : int or None
        Number of features; None to measure it.
    input_size : int or None
        Edge of the input in pixels; None leaves tiles as they are.
    fixed_size : bool
        Whether smaller tiles are enlarged to `input_size`; larger ones are always reduced.
    mean, std : tuple of float
        Normalisation of R, G and B in [0, 1].
    pooling : {"model", "mean", "token", "token+mean"}
        How features are pooled: by the model itself, by the mean over a map of shape
        (channels, height, width), as the class token, or as the class token followed by the
        mean of the patch tokens.
    licence : str
        Licence of the weights.
    source : str
        Where the weights come from.
    arguments : dict
        Further arguments of ``timm.create_model``. `mlp_layer` and `embed_layer` may be names
        in ``timm.layers``. ``attention_pool=True`` adds the pooling of CONCH.
    prefix_tokens : int
        Number of tokens before the patch tokens: the class token and registers.
    transform : callable or None
        Maps a tile, a ``PIL.Image.Image`` in RGB, to a float tensor of shape (3, height,
        width), as transforms of torchvision and timm do. It replaces the resizing and the
        normalisation: `input_size`, `fixed_size`, `mean` and `std` have no effect.
    transform_name : str or None
        Identifies `transform` in the store of features; its ``repr`` by default. Required if
        the ``repr`` contains a memory address or a lambda, and advisable if it does not show
        all parameters.
    repository : str or None
        Repository of the weights at Hugging Face, "owner/name" or "owner/name@revision".
    gated : bool
        Whether access to the weights must be requested.
    mpp : float or None
        Resolution in um/px of the training tiles, where the authors state one value.
    weights_file : str or None
        Name of the file in the repository; None for model.safetensors or pytorch_model.bin.

    See Also
    --------
    list_encoders : Lists the encoders known by name.

    Examples
    --------
    An architecture of timm with your own weights:

    >>> from sklearn_pk.slides import Encoder, FoundationFeaturizer
    >>> mine = Encoder("mine", "resnet18", 512, fixed_size=False)
    >>> featurizer = FoundationFeaturizer(mine, weights="resnet18.safetensors")

    A module with its own transform:

    >>> import torch
    >>> from torchvision import transforms
    >>> module = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten())
    >>> mine = Encoder("mine", module, transform=transforms.ToTensor())
    >>> featurizer = FoundationFeaturizer(mine)
    """

    name: str
    architecture: object
    width: int | None = None
    input_size: int | None = 224
    fixed_size: bool = True
    mean: tuple = IMAGENET_MEAN
    std: tuple = IMAGENET_STD
    pooling: str = "model"
    licence: str = "that of the weights"
    source: str = "the file given as weights"
    arguments: dict = field(default_factory=dict, hash=False)
    prefix_tokens: int = 1
    transform: Callable | None = field(default=None, hash=False)
    transform_name: str | None = None
    repository: str | None = None
    gated: bool = False
    mpp: float | None = None
    weights_file: str | None = None

    def __post_init__(self):
        """Check the values, which would otherwise only change the features."""
        if not isinstance(self.architecture, str) and not hasattr(self.architecture, "state_dict"):
            raise TypeError(
                f"encoder {self.name!r}: architecture must be the name of a model in timm or a "
                f"torch.nn.Module, got {self.architecture!r}."
            )
        if self.pooling not in _POOLINGS:
            raise ValueError(
                f"encoder {self.name!r}: pooling must be one of {_POOLINGS!r}, got "
                f"{self.pooling!r}."
            )
        if self.transform is not None and not callable(self.transform):
            raise TypeError(
                f"encoder {self.name!r}: transform must be callable or None, got "
                f"{self.transform!r}."
            )
        for key in ("mean", "std"):
            object.__setattr__(self, key, tuple(getattr(self, key)))

    @property
    def key(self):
        """
        Text that identifies everything but the weights that changes the features.

        It is the same in every process. A ValueError is raised if an argument or the transform
        has no such text.
        """
        if isinstance(self.architecture, str):
            arguments = sorted(self.arguments.items())
            advice = "Give layers by their names."
            model = (self.architecture, self._describe(arguments, "arguments", advice))
        else:
            model = (type(self.architecture).__module__, type(self.architecture).__qualname__)
        if self.transform is None:
            fed = (self.input_size, self.fixed_size, self.mean, self.std)
        elif self.transform_name is None:
            advice = 'Name it: Encoder(..., transform_name="my transform, version 1").'
            fed = self._describe(self.transform, "transform", advice)
        else:
            fed = self.transform_name
        return repr((model, fed, self.pooling, self.prefix_tokens))

    def _describe(self, value, parameter, advice):
        """Return a text that identifies a value in every process."""
        text = repr(value)
        if re.search(r"\bat 0x[0-9a-f]+|lambda", text, re.IGNORECASE):
            raise ValueError(
                f"encoder {self.name!r}: {parameter} reads {text!r}, which differs between "
                f"processes or is not complete, so it cannot identify stored features. {advice}"
            )
        return text

    def build(self):
        """
        Build the model without weights, offline.

        Returns
        -------
        torch.nn.Module
            A model of timm, or a copy of the module given as `architecture`. It maps (batch, 3,
            height, width) to the input of :meth:`pool`.

        Raises
        ------
        ValueError
            If the model has a different number of `prefix_tokens`.
        """
        if not isinstance(self.architecture, str):
            return copy.deepcopy(self.architecture)
        import timm

        arguments = {"num_classes": 0} | self.arguments
        pooled = arguments.pop("attention_pool", False)
        for key in ("mlp_layer", "embed_layer"):
            if isinstance(arguments.get(key), str):
                arguments[key] = _find_layer(arguments[key])
        model = timm.create_model(self.architecture, pretrained=False, **arguments)
        if pooled:
            from ._attention_pool import PooledTower

            return PooledTower(model, self.width)
        if arguments.get("features_only"):
            model.register_forward_hook(_last_map)
        n_tokens = getattr(model, "num_prefix_tokens", self.prefix_tokens)
        if self.pooling == "token+mean" and n_tokens != self.prefix_tokens:
            raise ValueError(
                f"encoder {self.name!r}: the model has {n_tokens} tokens before the patch tokens, "
                f"got prefix_tokens={self.prefix_tokens}."
            )
        return model

    def pool(self, output):
        """
        Pool the output of the model to one row per tile.

        Parameters
        ----------
        output : Tensor of shape (batch, width), (batch, tokens, channels) or \
                (batch, channels, height, width)
            Output of the model.

        Returns
        -------
        Tensor of shape (batch, width)
            Features.

        Raises
        ------
        ValueError
            If the result is not one row per tile.
        """
        import torch

        shape = tuple(output.shape)
        if self.pooling == "mean" and len(shape) == 4:
            output = output.mean(dim=(2, 3))
        elif self.pooling == "token" and len(shape) == 3:
            output = output[:, 0]
        elif self.pooling == "token+mean" and len(shape) == 3:
            patches = output[:, self.prefix_tokens :]
            output = torch.cat([output[:, 0], patches.mean(dim=1)], dim=1)
        if output.ndim != 2:
            raise ValueError(
                f"encoder {self.name!r} must give features of shape (tiles, n_features), got "
                f"{shape} and pooling={self.pooling!r}. Pool them within the module."
            )
        return output


def _last_map(module, pixels, maps):
    """Return the last of the feature maps that timm returns as a list."""
    return maps[-1]


def _find_layer(name):
    """Return a layer class by its name in timm, or ConvStem."""
    if name == "ConvStem":
        from ._conv_stem import ConvStem

        return ConvStem
    import timm.layers

    return getattr(timm.layers, name)


def measure_width(encoder):
    """Return the number of features of an encoder, without its weights."""
    if encoder.width is not None:
        return encoder.width
    import torch

    edge = encoder.input_size or 224
    pixels = torch.zeros(1, 3, edge, edge)
    if encoder.transform is not None:
        # Noise, because a stain normalisation may fail without any contrast.
        noise = np.random.default_rng(0).integers(0, 256, (edge, edge, 3), dtype=np.uint8)
        pixels = apply_transform(encoder.transform, noise[None])
    # On the meta device, shapes cost neither memory nor time.
    device = "meta" if isinstance(encoder.architecture, str) else "cpu"
    with torch.device(device), torch.inference_mode():
        model = encoder.build().to(device).eval()
        return encoder.pool(model(pixels.to(device))).shape[1]
