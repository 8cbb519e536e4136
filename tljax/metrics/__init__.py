"""What is counted under a mask, and how sure it is."""
