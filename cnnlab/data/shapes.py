"""Generated images of ten shapes: a data set that needs no download.

Each image shows one filled shape on a textured background with clutter and noise. A shape is defined by its signed
distance function (negative inside; see I. Quilez, "2D distance functions"), evaluated for all images of a class at
once. Position, size, rotation and colors are random; flipping an image left to right keeps its label.

It is hard enough to tell methods apart: with Adam at 0.001 and batches of 64 (`data=shapes optim=adam optim.lr=0.001
batch_size=64`, seed 0, bf16), the accuracies on training and test images are 0.976 and 0.881 after 20 epochs; with
`aug=pad_crop_flip` 0.947 and 0.946, with `model.dropout=0.5` 0.985 and 0.903.
"""

import hashlib
import math
from pathlib import Path

from cnnlab.config.shape import Shape
from cnnlab.data.images import DataSet, Images, fingerprint

CLASSES = ("circle", "ring", "square", "triangle", "pentagon", "star", "cross", "heart", "crescent", "arrow")


class Shapes:
    """Ten classes of generated images, which the arguments determine.

    Args:
        num_train, num_test: number of training and test images; the classes are equally frequent.
        image_size: height and width in pixels.
        noise: standard deviation of the pixel noise, as a fraction of the full range.
        clutter: number of small distracting shapes in each image.
        drawing_seed: each seed gives another sample from the same distribution.
    """

    def __init__(
        self,
        num_train: int = 10_000,
        num_test: int = 2_000,
        image_size: int = 32,
        noise: float = 0.06,
        clutter: int = 16,
        drawing_seed: int = 0,
    ):
        self.num_train, self.num_test, self.image_size = num_train, num_test, image_size
        self.noise, self.clutter, self.drawing_seed = noise, clutter, drawing_seed

    @property
    def shape(self) -> Shape:
        return Shape(len(CLASSES), 3, self.image_size, self.image_size)

    def digest(self) -> str:
        """A digest of the arguments and of this file."""
        return hashlib.sha256(repr(sorted(vars(self).items())).encode() + Path(__file__).read_bytes()).hexdigest()

    def load(self) -> DataSet:
        """Draw the images: 1.7 s for the default 12,000."""
        train = self._draw(self.num_train, stream=0)
        test = self._draw(self.num_test, stream=1)
        return DataSet(train, test, fingerprint(train, test))

    def _draw(self, num_images: int, stream: int) -> Images:
        import torch

        generator = torch.Generator().manual_seed(2 * self.drawing_seed + stream)
        labels = torch.arange(num_images) % len(CLASSES)
        chunks = [
            draw(chunk, self.image_size, self.noise, self.clutter, generator).mul_(255).round_().to(torch.uint8)
            for chunk in labels.split(500)
        ]
        pixels = torch.cat(chunks).numpy()  # (N, H, W, C)
        return Images(pixels.transpose(0, 3, 1, 2), labels.numpy(), CLASSES)


def draw(labels, size: int, noise: float, clutter: int, generator):
    """Draw images of the labeled shapes: labels (N,) int64 -> (N, size, size, 3) float32 in [0, 1]."""
    import torch

    num = len(labels)

    def uniform(low: float, high: float, *shape: int):
        return torch.empty(num, *shape).uniform_(low, high, generator=generator)

    axis = (torch.arange(size) + 0.5) / size * 2 - 1
    y, x = axis[:, None], axis[None, :]  # the image spans [-1, 1] x [-1, 1]

    def place(radius_low: float, radius_high: float, reach: float):
        """Coordinates u, v (N, size, size) of every pixel relative to a shape of random position, rotation and size."""
        radius = uniform(radius_low, radius_high)[:, None, None]
        center_x, center_y = uniform(-reach, reach, 1, 1), uniform(-reach, reach, 1, 1)
        angle = uniform(-1.5, 1.5, 1, 1)
        dx, dy = (x - center_x) / radius, (y - center_y) / radius
        mirror = (uniform(0, 1, 1, 1) < 0.5) * 2 - 1
        return mirror * (dx * angle.cos() + dy * angle.sin()), dy * angle.cos() - dx * angle.sin(), radius

    def blend(image, color, distance, softness: float = 1.5):
        """Paint `color` where distance (in units of [-1, 1]) is negative, with an anti-aliased edge."""
        cover = (0.5 - distance * size / 2 / softness).clamp_(0, 1)[..., None]
        return image + cover * (color - image)

    # the background: a gradient between two colors, with stripes
    first, second = uniform(0, 0.5, 1, 1, 3), uniform(0, 0.5, 1, 1, 3)
    turn, frequency, phase = uniform(0, math.tau, 1, 1), uniform(2, 9, 1, 1), uniform(0, math.tau, 1, 1)
    along = x * turn.cos() + y * turn.sin()
    image = first + (along[..., None] * 0.35 + 0.5) * (second - first)
    image = image + uniform(0, 0.12, 1, 1, 1) * torch.sin(along * frequency + phase)[..., None]

    for _ in range(clutter):  # bars of any length, rotation and color
        u, v, radius = place(0.08, 0.3, 1.0)
        swap = uniform(0, 1, 1, 1) < 0.5
        u, v = torch.where(swap, v, u), torch.where(swap, u, v)
        image = blend(image, uniform(0, 0.8, 1, 1, 3), box(u, v, 1.0, 0.35) * radius)

    # the shape, brighter than the mean background, shaded and striped
    u, v, radius = place(0.45, 0.75, 0.3)
    distance = torch.empty(num, size, size)
    for label, shape in enumerate(SHAPES):
        chosen = labels == label
        distance[chosen] = shape(u[chosen], v[chosen])
    color = uniform(0.35, 1, 1, 1, 3)
    shade = uniform(-0.15, 0.15, 1, 1) * u + uniform(0, 0.12, 1, 1) * torch.sin(v * uniform(3, 12, 1, 1) + phase)
    image = blend(image, color + shade[..., None], distance * radius)

    image = image + noise * torch.randn(image.shape, generator=generator)
    return image.clamp_(0, 1)


# Signed distances (exact or close to it) of shapes with radius about 1: u, v (...) -> (...); v points down.


def circle(u, v):
    return (u.square() + v.square()).sqrt() - 0.9


def ring(u, v):
    return circle(u, v).add(0.22).abs() - 0.22


def box(u, v, half_width: float, half_height: float):
    du, dv = u.abs() - half_width, v.abs() - half_height
    outside = (du.clamp(min=0).square() + dv.clamp(min=0).square()).sqrt()
    return outside + du.maximum(dv).clamp(max=0)


def square(u, v):
    return box(u, v, 0.78, 0.78)


def polygon(u, v, corners: int, inradius: float):
    sector = math.tau / corners
    angle = (u.atan2(-v) + sector / 2).remainder(sector) - sector / 2  # from the nearest corner's direction, up first
    return (u.square() + v.square()).sqrt() * (sector / 2 - angle.abs()).cos() - inradius


def triangle(u, v):
    return polygon(u, v - 0.2, 3, 0.56)


def pentagon(u, v):
    return polygon(u, v, 5, 0.78)


def star(u, v):
    angle = (u.atan2(-v) + math.pi / 5).remainder(math.tau / 5) - math.pi / 5
    length = (u.square() + v.square()).sqrt()
    a, b = length * angle.abs().sin(), length * angle.cos()  # folded to one half of one arm, whose tip is (0, 1.05)
    inner_a, inner_b = 0.42 * math.sin(math.pi / 5), 0.42 * math.cos(math.pi / 5)
    normal_a, normal_b = 1.05 - inner_b, inner_a
    return (a * normal_a + (b - 1.05) * normal_b) / math.hypot(normal_a, normal_b)


def cross(u, v):
    return box(u, v, 0.95, 0.3).minimum(box(u, v, 0.3, 0.95))


def heart(u, v):
    a, b = u.abs() / 1.5, 0.5 - v / 1.5  # the tip is at (0, 0), the lobes around (1/4, 3/4)
    half = 0.5 * (a + b).clamp(min=0)
    upper = ((a - 0.25).square() + (b - 0.75).square()).sqrt() - math.sqrt(2) / 4
    lower = (a.square() + (b - 1).square()).minimum((a - half).square() + (b - half).square()).sqrt() * (a - b).sign()
    return 1.5 * upper.where(a + b > 1, lower)


def crescent(u, v):
    return circle(u, v).maximum(0.75 - ((u - 0.42).square() + v.square()).sqrt())


def arrow(u, v):
    head = polygon(u, v + 0.3, 3, 0.36)
    return head.minimum(box(u, v - 0.4, 0.2, 0.55))


SHAPES = (circle, ring, square, triangle, pentagon, star, cross, heart, crescent, arrow)
