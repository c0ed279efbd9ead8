"""An image at several sizes, by a responder whose answers can be told by hand."""

import torch

from ris_pipeline.maps.sizes import AtSizes
from tiny import ByHand


class SideReader(ByHand):
    """Scores each sentence by its number times the side of the image that it is shown, in a grid of that size."""

    input_size, grid_hw = 160, (160, 160)

    def encode_texts(self, sentences):
        return torch.tensor([float(sentence) for sentence in sentences])

    def respond(self, image, texts, ref_ids=None):
        return texts[:, None, None] * image.shape[-1] * torch.ones(image.shape[-2:])


def test_the_grids_are_the_mean_over_three_sizes_of_whole_cells():
    responder = AtSizes(SideReader())
    images = responder.encode_images(torch.zeros(2, 3, 160, 160))
    assert [[look.shape[-1] for look in image] for image in images] == [[160, 192, 224]] * 2
    grids = responder.respond(images[0], responder.encode_texts(["1", "-2"]))
    assert grids.shape == (2, 160, 160)
    torch.testing.assert_close(grids[:, 0, 0], torch.tensor([192.0, -384.0]))


def test_its_own_size_is_seen_as_it_is():
    pixels = torch.rand(1, 3, 160, 160)
    (image,) = AtSizes(SideReader()).encode_images(pixels)
    assert torch.equal(image[0], pixels[0])
