"""Mean OOD accuracy of every path that was evaluated, along alpha and over ID accuracy.

python figures/fig_paths.py runs/demo --out figures
"""

from sharpscope.study.figures.script import figure_script

main = figure_script("paths_along_alpha", __doc__)

if __name__ == "__main__":
    main()
