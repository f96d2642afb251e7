"""Density of the Hessian's eigenvalues by layer and pair, one line per alpha, of a run with --density-layers.

python figures/fig_density.py runs/demo --out figures
"""

from sharpscope.study.figures.script import figure_script

main = figure_script("spectral_density", __doc__)

if __name__ == "__main__":
    main()
