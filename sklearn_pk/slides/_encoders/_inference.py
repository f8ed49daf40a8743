"""Run an encoder on batches of tiles."""

# SPDX-License-Identifier: BSD-3-Clause

from ...utils._out_of_memory import Halving, describe_memory, is_out_of_memory
from ...utils._reporting import warn_user


def prepare_tiles(tiles, encoder, device):
    """Bring tiles to the device, to the size the encoder takes and to its normalisation."""
    import torch
    from torch.nn.functional import interpolate

    tiles = tiles.to(device, non_blocking=True)
    if tiles.dtype != torch.uint8:
        return tiles.contiguous(memory_format=torch.channels_last)
    pixels = tiles.permute(0, 3, 1, 2).float()
    size, edges = encoder.input_size, pixels.shape[-2:]
    if size and (max(edges) > size or (encoder.fixed_size and min(edges) < size)):
        pixels = interpolate(pixels, size=(size, size), mode="bilinear", antialias=True)
    # (x / 255 - mean) / std in one step; it may follow the resizing, whose weights sum to 1.
    mean, std = (
        torch.tensor(values, dtype=torch.float64).view(1, 3, 1, 1)
        for values in (encoder.mean, encoder.std)
    )
    scale, shift = ((1 / (255 * std)).float(), (-mean / std).float())
    return torch.addcmul(shift.to(device), pixels, scale.to(device), out=pixels)


class TileEncoder:
    """A model as a function from tiles to features."""

    def __init__(
        self, model, encoder, *, device="cpu", dtype="float32", compile=False, batch_size=None
    ):
        import torch

        self.encoder = encoder
        self.device = device
        self._dtype = None if dtype == "float32" else getattr(torch, dtype)
        self._halving = Halving(batch_size, device, filled=compile)
        self._has_warned = False
        self._model = torch.compile(model, dynamic=False) if compile else model
        self._last = None

    @property
    def batch_size(self):
        """Number of tiles that are encoded at once now."""
        return self._halving.size

    def __call__(self, tiles):
        """Encode a batch, in halves where memory does not suffice."""
        import torch

        asked = self.batch_size
        parts = self._halving(
            lambda first, last: self._encode(tiles[first:last]), len(tiles), self._explain
        )
        if self.batch_size != asked and not self._has_warned:
            self._has_warned = True
            warn_user(
                f"batch_size={asked or len(tiles)} does not fit into the memory of "
                f"{describe_memory(self.device)}: the encoder {self.encoder.name!r} goes on with "
                f"{self.batch_size} at once, which changes features by rounding only. Pass "
                f"batch_size={self.batch_size} to start with that."
            )
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _explain(self, memory):
        shorter = "" if self._dtype else 'dtype="bfloat16", '
        return (
            f"The encoder {self.encoder.name!r} finds too little memory on {memory} for a single "
            f"tile. Use {shorter}another device or a smaller encoder, or end other processes "
            "that use the device. With a store, slides that are done are kept, and a second "
            "run goes on after them."
        )

    def _encode(self, tiles):
        import torch

        n_tiles = len(tiles)
        with torch.inference_mode():
            if self._halving.filled and n_tiles < (self.batch_size or 0):
                # Before the preparation, so that all batches are alike in memory too.
                rest = tiles.new_zeros((self.batch_size - n_tiles, *tiles.shape[1:]))
                tiles = torch.cat([tiles, rest])
            pixels = prepare_tiles(tiles, self.encoder, self.device)
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
            ours = type(error).__module__.startswith(("torch._dynamo", "torch._inductor"))
            if not ours or is_out_of_memory(error):
                raise
            raise RuntimeError(
                f"compile=True: torch cannot compile the encoder {self.encoder.name!r} here "
                f"({str(error).strip().splitlines()[0]}). On the CPU it needs a C++ compiler, on a "
                "GPU Triton and a C compiler. Install them, or pass compile=False."
            ) from error

    def _wait(self):
        """Wait for the batch before, so that a GPU has one in store but no heap of them."""
        import torch

        if torch.device(self.device).type != "cuda":
            return
        done = torch.cuda.Event()
        done.record(torch.cuda.current_stream(self.device))
        if self._last is not None:
            self._last.synchronize()
        self._last = done
