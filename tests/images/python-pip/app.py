import attrs
from itsdangerous import Signer


@attrs.frozen
class Point:
    x: int
    y: int


def sign(point: Point) -> str:
    return Signer("key").sign(f"{point.x},{point.y}").decode()
