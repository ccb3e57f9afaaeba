// Two texts in; their words out, each marked as common or as only in one (longest common subsequence).

const MAX_CELLS = 4e6; // beyond this the middle of two long texts counts as changed as a whole

// -> [pieces of a, pieces of b]; a piece is { text, changed }
function difference(a, b) {
  const [left, right] = [a, b].map((text) => text.match(/\s+|[^\s]+/g) ?? []);
  const words = (pieces) => pieces.flatMap((piece, index) => /^\s/.test(piece) ? [] : [index]);
  const [i, j] = [words(left), words(right)];
  let start = 0, endA = i.length, endB = j.length;
  const same = (x, y) => left[i[x]] === right[j[y]];
  while (start < endA && start < endB && same(start, start)) start++;
  while (endA > start && endB > start && same(endA - 1, endB - 1)) { endA--; endB--; }
  const keptA = new Set(), keptB = new Set();
  for (let k = 0; k < start; k++) { keptA.add(k); keptB.add(k); }
  for (let k = 0; k < i.length - endA; k++) { keptA.add(endA + k); keptB.add(endB + k); }
  for (const [x, y] of commonWords(start, endA, endB, same)) { keptA.add(x); keptB.add(y); }
  return [marked(left, i, keptA), marked(right, j, keptB)];
}

function commonWords(start, endA, endB, same) {
  const rows = endA - start, columns = endB - start;
  if (rows === 0 || columns === 0 || rows * columns > MAX_CELLS) return [];
  const width = columns + 1;
  const length = new Uint16Array((rows + 1) * width);
  for (let x = rows - 1; x >= 0; x--) {
    for (let y = columns - 1; y >= 0; y--) {
      length[x * width + y] = same(start + x, start + y) ? length[(x + 1) * width + y + 1] + 1
        : Math.max(length[(x + 1) * width + y], length[x * width + y + 1]);
    }
  }
  const pairs = [];
  for (let x = 0, y = 0; x < rows && y < columns;) {
    if (same(start + x, start + y)) pairs.push([start + x++, start + y++]);
    else if (length[(x + 1) * width + y] >= length[x * width + y + 1]) x++;
    else y++;
  }
  return pairs;
}

// Neighbouring words of one kind become one piece; white space goes with the word before it.
function marked(pieces, words, kept) {
  const changed = new Array(pieces.length).fill(null);
  words.forEach((piece, word) => { changed[piece] = !kept.has(word); });
  const result = [];
  pieces.forEach((text, index) => {
    const last = result.at(-1);
    const between = changed[index] === null && changed[index - 1] === true && changed[index + 1] === true;
    const kind = changed[index] === null ? between : changed[index];
    if (last && last.changed === kind) last.text += text;
    else result.push({ text, changed: kind });
  });
  return result;
}
