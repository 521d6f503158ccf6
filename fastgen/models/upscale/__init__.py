"""Super-resolution networks: SRGAN's generator and its successors."""
