import unittest

from app import Point, sign


class Signs(unittest.TestCase):
    def test_signs(self):
        self.assertTrue(sign(Point(1, 2)).startswith("1,2."))
