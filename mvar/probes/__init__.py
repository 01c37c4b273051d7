"""What is measured on a trained model: where its attention goes, without maps and with single ones."""
