"""What joins this package to others, each in a file that alone imports that package."""
