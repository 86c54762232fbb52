"""What a trained generator and its discriminator have learnt: directions, units, projections, saliency."""
