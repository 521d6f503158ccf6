"""Networks of GANs: generators, and the discriminators that judge them."""
