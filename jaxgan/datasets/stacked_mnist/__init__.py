"""Three MNIST digits in the three channels of an image: a thousand modes that a classifier of digits can count."""
