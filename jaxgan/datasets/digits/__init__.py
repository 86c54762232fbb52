"""1,797 handwritten digits of 8x8 pixels, from the UCI repository; they are part of scikit-learn."""
