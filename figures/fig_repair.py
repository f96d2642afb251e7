"""OOD gain at equal ID accuracy with sparse stragglers, compared with random layers and with all layers made sparse.

python figures/fig_repair.py runs/demo --alpha 0.3 --out figures
"""

from sharpscope.study.figures.script import figure_script

main = figure_script("repair", __doc__)

if __name__ == "__main__":
    main()
