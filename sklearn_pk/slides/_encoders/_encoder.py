"""What has to be known about a tile encoder to build and feed it."""

# SPDX-License-Identifier: BSD-3-Clause

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass, field

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_POOLINGS = ("model", "mean", "token", "token+mean")


@dataclass(frozen=True)
class Encoder:
    """
    What has to be known about a tile encoder.

    Parameters
    ----------
    name : str
        Name in the registry, or any other.
    architecture : str or torch.nn.Module
        Name of the model in timm, or a module with its weights, which maps (batch, 3, height,
        width) to (batch, n_features).
    width : int or None
        Number of features; None if the architecture decides.
    input_size : int or None
        Edge of the input in pixels; None takes tiles as they are.
    fixed_size : bool
        Whether smaller tiles are enlarged to `input_size`; larger ones are always reduced.
    mean, std : tuple of float
        Normalisation of R, G and B in [0, 1].
    pooling : {"model", "mean", "token", "token+mean"}
        How features arise: the model's own pooling (a mean for convolutional ones), the mean
        over a map of shape (channels, height, width), the class token, or that followed by
        the mean of the patch tokens.
    licence : str
        Licence of the weights.
    source : str
        Where the weights come from.
    arguments : dict
        Further arguments of ``timm.create_model``. The types `mlp_layer` and `embed_layer` may
        be given as names in ``timm.layers``.
    prefix_tokens : int
        Number of tokens before the patch tokens: the class token and registers.
    transform : callable or None
        Maps a tile, a ``PIL.Image.Image`` in RGB, to a float tensor of shape (3, height,
        width), as transforms of torchvision and timm do. It then decides alone how tiles are
        resized and normalised: `input_size`, `fixed_size`, `mean` and `std` have no effect.
    transform_name : str or None
        What tells `transform` from others in the store of features; its ``repr`` by default.
        Needed if that holds a memory address or a lambda, and advisable if it does not tell
        all parameters.
    repository : str or None
        Repository of the weights at Hugging Face, "owner/name". If it is in the local cache,
        the weights are taken from there.
    gated : bool
        Whether access to the weights has to be requested.
    mpp : float or None
        Resolution in um/px of the tiles the encoder was trained on, where its authors print
        one value.

    See Also
    --------
    list_encoders : The encoders known by name.

    Examples
    --------
    An architecture of timm with weights of one's own:

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

    def __post_init__(self):
        """Check what a typing error would only show in the features."""
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
        Everything but the weights that changes the features, as text.

        It is the same in every process; a ValueError says if an argument or the transform has
        no such text.
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
        """Return a text that tells values apart in any process."""
        text = repr(value)
        if re.search(r"\bat 0x[0-9a-f]+|lambda", text, re.IGNORECASE):
            raise ValueError(
                f"encoder {self.name!r}: {parameter} reads {text!r}, which differs from process "
                f"to process or does not tell all, so stored features could not be known again. "
                f"{advice}"
            )
        return text

    def build(self):
        """
        Build the model, without a network.

        Returns
        -------
        torch.nn.Module
            A model of timm without weights, or a copy of the module that the encoder brings
            along. It maps (batch, 3, height, width) to what :meth:`pool` takes.

        Raises
        ------
        ValueError
            If the model has another number of `prefix_tokens`.
        """
        if not isinstance(self.architecture, str):
            return copy.deepcopy(self.architecture)
        import timm

        arguments = {"num_classes": 0} | self.arguments
        for key in ("mlp_layer", "embed_layer"):
            if isinstance(arguments.get(key), str):
                arguments[key] = _find_layer(arguments[key])
        model = timm.create_model(self.architecture, pretrained=False, **arguments)
        if arguments.get("features_only"):
            model.register_forward_hook(_last_map)
        n_tokens = getattr(model, "num_prefix_tokens", self.prefix_tokens)
        if self.pooling == "token+mean" and n_tokens != self.prefix_tokens:
            raise ValueError(
                f"encoder {self.name!r}: {n_tokens} tokens stand before those of the patches, got "
                f"prefix_tokens={self.prefix_tokens}."
            )
        return model

    def pool(self, output):
        """
        Turn what the model gives into one row a tile.

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
            If that is not one row a tile.
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
    """Take the last of the feature maps that timm gives as a list."""
    return maps[-1]


def _find_layer(name):
    """Look up a layer of timm, or the one of ours, by its name."""
    if name == "ConvStem":
        from ._conv_stem import ConvStem

        return ConvStem
    import timm.layers

    return getattr(timm.layers, name)
