"""What a segmentation leaves behind: label maps, pictures and reports."""
