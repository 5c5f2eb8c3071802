"""Checkpoints of other libraries, read into Linen trees and written back."""
