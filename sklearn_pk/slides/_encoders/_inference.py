"""Run an encoder on batches of tiles."""

# SPDX-License-Identifier: BSD-3-Clause

from ...utils._out_of_memory import Halving, describe_memory, is_out_of_memory
from ...utils._reporting import warn_user


def apply_transform(transform, tiles):
    """Apply the transform of an encoder to each tile."""
    import torch
    from PIL import Image

    images = [transform(Image.fromarray(tile)) for tile in tiles]
    for image in images:
        if not torch.is_tensor(image) or image.ndim != 3 or not image.is_floating_point():
            found = f"{tuple(image.shape)} and {image.dtype}" if torch.is_tensor(image) else image
            raise TypeError(
                "The transform of an encoder must turn a PIL image into a float tensor of shape "
                f"(3, height, width), got {found!r}."
            )
    return torch.stack(images).float()


def normalisation(encoder, device):
    """Return the scale and the shift of pixels, (x / 255 - mean) / std in one step."""
    import torch

    mean, std = (
        torch.tensor(values, dtype=torch.float64, device="cpu").view(1, 3, 1, 1)
        for values in (encoder.mean, encoder.std)
    )
    return (1 / (255 * std)).float().to(device), (-mean / std).float().to(device)


def prepare_tiles(tiles, encoder, device, constants=None):
    """Move tiles to the device, resize and normalise them for the encoder."""
    import torch
    from torch.nn.functional import interpolate

    tiles = tiles.to(device, non_blocking=True)
    if tiles.dtype != torch.uint8:
        return tiles.contiguous(memory_format=torch.channels_last)
    pixels = tiles.permute(0, 3, 1, 2).float()
    size, edges = encoder.input_size, pixels.shape[-2:]
    if size and (max(edges) > size or (encoder.fixed_size and min(edges) < size)):
        pixels = interpolate(pixels, size=(size, size), mode="bilinear", antialias=True)
    # It may follow the resizing, whose weights sum to 1.
    scale, shift = normalisation(encoder, device) if constants is None else constants
    return torch.addcmul(shift, pixels, scale, out=pixels)


class TileEncoder:
    """A function from tiles to features."""

    def __init__(
        self, model, encoder, *, device="cpu", dtype="float32", compile=False, batch_size=None
    ):
        import torch

        self.encoder = encoder
        self.device = device
        self._constants = normalisation(encoder, device)
        self._dtype = None if dtype == "float32" else getattr(torch, dtype)
        self._halving = Halving(batch_size, device, filled=compile)
        self._has_warned = False
        self._model = torch.compile(model, dynamic=False) if compile else model
        self._last = None

    @property
    def batch_size(self):
        """Number of tiles per batch that fits into memory, as far as known."""
        return self._halving.size

    def __call__(self, tiles):
        """Encode a batch, in halves where memory runs out."""
        import torch

        requested = self.batch_size
        parts = self._halving(
            lambda first, last: self._encode(tiles[first:last]), len(tiles), self._explain
        )
        if self.batch_size != requested and not self._has_warned:
            self._has_warned = True
            warn_user(
                f"batch_size={requested or len(tiles)} does not fit into the memory of "
                f"{describe_memory(self.device)}: the encoder {self.encoder.name!r} continues "
                f"with {self.batch_size} tiles at once, which changes features by rounding only. "
                f"Pass batch_size={self.batch_size} to start with it."
            )
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _explain(self, memory):
        shorter = "" if self._dtype else 'dtype="bfloat16", '
        return (
            f"A single tile does not fit into the memory of {memory} with the encoder "
            f"{self.encoder.name!r}. Use {shorter}another device or a smaller encoder, or end "
            "other processes that use the device. With a store, finished slides are kept and a "
            "second run continues after them."
        )

    def _encode(self, tiles):
        import torch

        n_tiles = len(tiles)
        with torch.inference_mode():
            if self._halving.filled and n_tiles < (self.batch_size or 0):
                # Before the preparation, so that all batches take the same memory.
                padding = tiles.new_zeros((self.batch_size - n_tiles, *tiles.shape[1:]))
                tiles = torch.cat([tiles, padding])
            pixels = prepare_tiles(tiles, self.encoder, self.device, self._constants)
            with torch.autocast(
                torch.device(self.device).type, self._dtype, enabled=self._dtype is not None
            ):
                output = self._run(pixels)
            features = self.encoder.pool(output[:n_tiles].float())
        self._wait()
        return features

    def _run(self, pixels):
        try:
            return self._model(pixels)
        except RuntimeError as error:
            from_compiler = type(error).__module__.startswith(("torch._dynamo", "torch._inductor"))
            if not from_compiler or is_out_of_memory(error, self.device):
                raise
            raise RuntimeError(
                f"compile=True: torch cannot compile the encoder {self.encoder.name!r} here "
                f"({str(error).strip().splitlines()[0]}). On the CPU it needs a C++ compiler, on a "
                "GPU Triton and a C compiler. Install them, or pass compile=False."
            ) from error

    def _wait(self):
        """Wait for the previous batch, so that at most one more is queued on a GPU."""
        import torch

        if torch.device(self.device).type != "cuda":
            return
        done = torch.cuda.Event()
        done.record(torch.cuda.current_stream(self.device))
        if self._last is not None:
            self._last.synchronize()
        self._last = done
