// Package dir finds the executables of --prestart-dir.
package dir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Default is the folder that is looked into when none is given. An image, a
// base image or a ConfigMap can put steps there without a flag.
const Default = "/etc/skep/prestart.d"

// List returns the paths of the executables in the folder path, in the order of
// their names (by bytes: 10-x is before 9-x), and one line for each file that
// is there and does not run. given says that the user named the folder: then it
// has to exist; the default folder may be absent.
//
// Not run, and without a line: names that begin with a dot (also the ..data of
// a mounted ConfigMap) and what editors and package managers leave (ending in
// ~, .bak, .orig, .rej, .swp, .dpkg-*, .ucf-*, .rpmnew, .rpmsave, .rpmorig, or
// #name#). Not run, with a line: folders, other non-files, and files without an
// execute bit. Other than run-parts(8), names may hold dots, because leaving out
// 10-migrate.sh in silence helps nobody. Symbolic links are followed.
//
// It reads the folder and may block on a dead volume; it is for the time before
// the loop.
func List(path string, given bool) (files, skipped []string, err error) {
	entries, err := os.ReadDir(path)
	if err != nil {
		if !given && errors.Is(err, fs.ErrNotExist) {
			return nil, nil, nil
		}
		return nil, nil, fmt.Errorf("cannot read the folder of steps: %w", err)
	}
	for _, entry := range entries { // ReadDir has sorted them
		name := entry.Name()
		if leftover(name) {
			continue
		}
		file := filepath.Join(path, name)
		info, err := os.Stat(file)
		if err != nil {
			// A link that leads nowhere is a step that would be missing.
			return nil, nil, fmt.Errorf("cannot look at the step: %w", err)
		}
		switch mode := info.Mode(); {
		case mode.IsDir():
			skipped = append(skipped, file+" is a folder, not run")
		case !mode.IsRegular():
			skipped = append(skipped, file+" is no regular file, not run")
		case mode&0o111 == 0:
			skipped = append(skipped, fmt.Sprintf("%s is not executable (mode %04o), not run; chmod +x it, or set defaultMode: 0555 for a ConfigMap", file, mode.Perm()))
		default:
			files = append(files, file)
		}
	}
	return files, skipped, nil
}

// leftover tells names that are never meant as steps.
func leftover(name string) bool {
	if strings.HasPrefix(name, ".") || strings.HasSuffix(name, "~") ||
		len(name) > 1 && strings.HasPrefix(name, "#") && strings.HasSuffix(name, "#") {
		return true
	}
	switch ext := filepath.Ext(name); ext {
	case ".bak", ".orig", ".rej", ".swp", ".rpmnew", ".rpmsave", ".rpmorig":
		return true
	default:
		return strings.HasPrefix(ext, ".dpkg-") || strings.HasPrefix(ext, ".ucf-")
	}
}
